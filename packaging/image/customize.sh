# Runs at the end of mmdebstrap, with the new root as $1: everything about the
# root that is not a package. mmdebstrap hands this text to sh -c, because in a
# user name space it may not be allowed to read the file.
set -eu
root=$1
[ -n "$root" ] && [ "$root" != / ] # everything below deletes in it

# ChromeOS's user of a VM. Its password is locked: one gets in through vshd.
chroot "$root" groupadd --gid 1000 chronos
chroot "$root" useradd --uid 1000 --gid 1000 --create-home --shell /bin/bash chronos

# What the ids of containers are mapped to; and uid 1000 to itself, which makes a
# container's user the owner of the same files outside.
printf 'root:1000000:1000000000\nroot:1000:1\n' | tee "$root/etc/subuid" >"$root/etc/subgid"

# What the agent mounts on, because the root is read-only.
mkdir -p "$root/mnt/stateful" "$root/mnt/shared" "$root/mnt/external" \
	"$root/opt/google/cros-containers" "$root/var/lib/lxcfs" "$root/var/lib/incus"

# The agent writes the resolver's configuration (SetResolvConfig).
rm -f "$root/etc/resolv.conf"
ln -s /run/resolv.conf "$root/etc/resolv.conf"

# PID 1 is our agent, and these commands, which it leaves in /run, reach it.
for command in poweroff shutdown halt; do
	ln -s "/run/auberge/bin/$command" "$root/usr/local/sbin/$command"
done

# Nothing of the machine that built it, nothing that is to differ between VMs.
echo localhost >"$root/etc/hostname"
printf '127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n' >"$root/etc/hosts"
rm -rf "$root/etc/machine-id" "$root/var/lib/dbus" "$root/etc/ssh"
: >"$root/etc/machine-id"

# Nothing that only apt or a reader of manuals would miss.
rm -rf "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/info/* \
	"$root"/usr/share/locale/* "$root"/usr/share/lintian "$root"/usr/share/bug \
	"$root"/usr/share/bash-completion/completions/* "$root"/usr/share/zsh \
	"$root"/var/cache/debconf/* "$root"/var/cache/ldconfig/* "$root"/var/log/* \
	"$root"/var/lib/dpkg/*-old "$root"/var/backups/* "$root"/etc/*-

# How to reach the network from where it was built. Not /tmp: mmdebstrap's own
# apt configuration is in there until it is done, and without it its clean-up
# would be done to the builder's machine. It empties /tmp, /run and apt's cache
# itself.
rm -f "$root"/etc/apt/apt.conf.d/99mmdebstrap "$root"/etc/apt/sources.list.d/*
: >"$root/etc/apt/sources.list"
