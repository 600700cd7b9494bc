"""The only room that touches the kernel: netlink, nftables, namespaces, sysctls.

netlink/      the wire format and a connection, nothing of meaning
netns         namespaces: open, make, run something inside
links, addresses, routes, neighbours, sysctls, nft
              one module per kind of object: requests to build (pure), records to read
bpf, tc, tcx  eBPF programs, and the two kinds of hook that they hang on
ipip, ipip_programs
              IPIP tunnels by such programs
wiring        the two ends of a pod's veth pair
engine, kinds one diff, and what it drives
node          Kernel: all of it for one node
events        what somebody else changed
support       whether this system can do it at all
"""
