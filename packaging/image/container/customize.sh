# Runs at the end of mmdebstrap, with the container's new root as $1: what is
# neither a package nor in files/. mmdebstrap hands this text to sh -c,
# because in a user name space it may not be allowed to read the file.
set -eu
root=$1
[ -n "$root" ] && [ "$root" != / ] # everything below deletes in it

# What a container of ChromeOS mounts and runs its tools from.
mkdir -p "$root/opt/google/cros-containers"

# The network is all that a container has of its own. Clock, kernel, devices and
# disks are the VM's; there is no console to log in at, and /tmp is no memory.
systemctl --root="$root" --quiet enable systemd-networkd.service systemd-resolved.service
systemctl --root="$root" --quiet disable systemd-networkd-wait-online.service
# ssh comes through vsh and sshd -i: nothing listens, unless the user wants it.
systemctl --root="$root" --quiet disable ssh.service ssh.socket
for unit in getty.target console-getty.service container-getty@.service getty@.service \
	modprobe@.service systemd-modules-load.service systemd-remount-fs.service \
	systemd-hwdb-update.service systemd-pstore.service systemd-udev-load-credentials.service \
	systemd-network-generator.service systemd-networkd-persistent-storage.service systemd-timesyncd.service \
	systemd-tmpfiles-setup-dev-early.service systemd-tmpfiles-setup-dev.service \
	sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount \
	sys-fs-fuse-connections.mount dev-hugepages.mount dev-mqueue.mount tmp.mount \
	proc-sys-fs-binfmt_misc.automount fstrim.timer e2scrub_all.timer e2scrub_reap.service \
	apt-daily.timer apt-daily-upgrade.timer; do
	ln -sfn /dev/null "$root/etc/systemd/system/$unit"
done
# Packages made all that a first boot would make anew.
touch "$root/etc/.updated" "$root/var/.updated"

# The agent runs for the container's user, from the tools that the VM brings.
mkdir -p "$root/etc/systemd/user/default.target.wants"
ln -s /usr/lib/systemd/user/cros-garcon.service "$root/etc/systemd/user/default.target.wants/"

# Incus' names for a container come through its templates.
echo localhost >"$root/etc/hostname"
printf '127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n' >"$root/etc/hosts"
echo LANG=C.UTF-8 >"$root/etc/default/locale"
ln -sfn /run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"

# Each container makes its own at its first start.
rm -rf "$root"/etc/ssh/ssh_host_* "$root/var/lib/dbus" "$root"/var/lib/systemd/random-seed
: >"$root/etc/machine-id"

# udev is there for the network's device, and knows no hardware.
rm -rf "$root"/usr/lib/udev/hwdb.d "$root"/usr/lib/udev/hwdb.bin "$root"/etc/udev/hwdb.bin

# Nothing that only a reader of manuals would miss.
rm -rf "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/info/* \
	"$root"/usr/share/locale/* "$root"/usr/share/lintian "$root"/usr/share/bug \
	"$root"/var/cache/debconf/*-old "$root"/var/cache/ldconfig/* \
	"$root"/var/lib/dpkg/*-old "$root"/var/backups/* "$root"/etc/*-

find "$root/var/log" -type f -delete

# How to reach the network from where it was built; the person whose container
# it becomes chooses where packages come from.
rm -f "$root"/etc/apt/apt.conf.d/99mmdebstrap "$root"/etc/dpkg/dpkg.cfg.d/99mmdebstrap "$root"/etc/apt/sources.list.d/*
: >"$root/etc/apt/sources.list"
