"""The controller: what one has to do for a whole cluster, so that agents need no right to it.

It gives back what removed nodes leave behind and says of pools, peers and settings whether they hold. Pods need
none of it: while it is away, agents judge alike (podway.cluster.setting_aside), and what waits for it waits.

election    who of several controllers works, by a Lease; pure
following   the cluster's objects as the controller knows them
duties      what is to be done, from these; pure
controller  does it
"""
