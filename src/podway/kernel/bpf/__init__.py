"""eBPF: programs loaded and attached, and their maps.

libbpf           the library and the system call
tcx              programs on a device (from kernel 6.6); before, on a qdisc: podway.kernel.rtnl.tc
ipip_programs    those of IPIP
flow_*           those of the flow engine
"""
