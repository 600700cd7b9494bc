"""The only room that touches the kernel: netlink, nftables, eBPF, namespaces, sysctls.

What others import are its doors:

node          Kernel: everything that Podway does to one node, in one piece
network       reads what a namespace's network holds; `requests` builds changes of it, for labs
firewall      reads all firewall rules
netns         namespaces: open, make, run something inside
sysctls       read and write settings
events        what somebody else changed
flow, flow_events
              the flow engine: what it goes by, and what it tells
leases, removal, ipip, offload, engine
              leases read, links removed, IPIP's objects, spoiled offloads, what applying a plan did
support       whether this system can do it at all

Behind them, for this room alone (`.importlinter` guards it), each knowing only what is named after it:

kinds         what the engine drives: what is ours of each kind, and how it is changed
wiring, pods  the two ends of a pod's veth pair
bpf/          eBPF programs and maps, and where they hang
rtnl/         rtnetlink: links, addresses, routes, neighbours, bridges, qdiscs
nft/          nftables by its library
"""
