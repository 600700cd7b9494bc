#!/bin/sh
# Makes a machine of namespaces: the first process of a lab's node, in a mount, PID, IPC and UTS namespace of its own.
#   node.sh NAME DIRECTORY RUN_DIR PAUSE SYSCTL=VALUE…
# What daemons and plugins write at their usual places goes into DIRECTORY, and into RUN_DIR what an agent writes.
# Writes DIRECTORY/ready once all stands, then only reaps.
set -eu
name=$1 directory=$2 run_dir=$3 pause=$4
shift 4

mount --make-rprivate /
mount -t proc proc /proc
hostname "$name"

# sysfs shows the network namespace in which it is mounted; the tree of cgroups is the machine's own.
mkdir -p "$directory/cgroup"
mount --rbind /sys/fs/cgroup "$directory/cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$directory/cgroup" /sys/fs/cgroup
umount --lazy "$directory/cgroup"

# RUN_DIR may lie in what is about to be covered.
mkdir -p "$directory/run/podway"
mount --bind "$run_dir" "$directory/run/podway"
for place in /run /var/lib/kubelet /var/lib/containerd /var/log /etc/cni/net.d /opt/cni/bin; do
    mkdir -p "$directory$place" "$place"
    mount --rbind "$directory$place" "$place"
done
mkdir -p /run/netns /run/lock

# Kubelet and kube-proxy want these settings, which are the whole machine's: they see what they want, and set nothing.
mkdir -p "$directory/sysctl"
for setting; do
    path=/proc/sys/${setting%%=*}
    [ -e "$path" ] || continue
    shown=$directory/sysctl/$(echo "${setting%%=*}" | tr / .)
    echo "${setting#*=}" >"$shown"
    mount --bind "$shown" "$path"
done

# What a runtime mounts for a pod has to be seen by others that live on the node.
mount --make-rshared /
touch "$directory/ready"
exec "$pause"
