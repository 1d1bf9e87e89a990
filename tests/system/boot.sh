#!/bin/sh
# Become a machine: a root of its own over this one's, in namespaces that the caller has made; then the real systemd.
#
#   boot.sh HOME NAME      HOME: a directory with upper/, work/, root/, source/, … on a tmpfs, and perhaps var/, a mounted disk
set -eu
home=$1 name=$2
root=$home/root
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=/,upperdir=$home/upper,workdir=$home/work" "$root"
if [ -d "$home/var" ]; then mount --bind "$home/var" "$root/var/lib/labd"; fi
# What the machine's own tests run on: to read, and not to write.
mount --bind "$home/packages" "$root/opt/packages"
mount -o remount,bind,ro "$root/opt/packages"
mkdir -p "$root/opt/source"
mount -t overlay overlay -o "lowerdir=$home/source,upperdir=$home/written,workdir=$home/written-work" "$root/opt/source"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
# Devices that harm nobody, instead of the machine's own.
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mkdir "$root/dev/shm" "$root/dev/pts"
mount -t tmpfs -o mode=1777,size=1g tmpfs "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
for device in null zero full random urandom tty; do
    : >"$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
else
    mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
    for controller in blkio cpuset cpu cpuacct memory pids devices freezer; do
        mkdir "$root/sys/fs/cgroup/$controller"
        mount -t cgroup -o "$controller" cgroup "$root/sys/fs/cgroup/$controller"
    done
    mkdir "$root/sys/fs/cgroup/systemd" "$root/sys/fs/cgroup/unified"
    mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup/unified"
fi
hostname "$name"
cd "$root"
pivot_root . mnt
umount -l /mnt
# As process 1 finds it on a machine; credentials reach a unit by this.
mount --make-rshared /
exec env -i container=labd-test PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --log-target=journal --show-status=0
