# Runs at the end of mmdebstrap, with the new root as $1: everything about the
# test host that is not a package. mmdebstrap hands this text to sh -c, because
# in a user name space it may not be allowed to read the file.
set -eu
root=$1
[ -n "$root" ] && [ "$root" != / ]

# Two ordinary users. Their passwords are locked: tests log them in.
chroot "$root" useradd --uid 1000 --create-home --shell /bin/bash alice
chroot "$root" useradd --uid 1001 --create-home --shell /bin/bash bob

echo testhost >"$root/etc/hostname"
printf '127.0.0.1\tlocalhost testhost\n::1\tlocalhost\n' >"$root/etc/hosts"
# An empty one would be a first boot, with all units' presets.
echo 5a3c0e2f9b7d4e61a8f2c4d6e8b0a1c3 >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id"
ln -s /etc/machine-id "$root/var/lib/dbus/machine-id"
# What one run of the machine logged is for the next to read.
mkdir -p "$root/var/log/journal"

# Nobody logs in by hand, and logind is not to start what would let them: the
# terminals belong to the users that tests log in.
chroot "$root" systemctl -q disable getty@tty1.service
mkdir -p "$root/etc/systemd/logind.conf.d"
printf '[Login]\nNAutoVTs=0\nReserveVT=0\n' >"$root/etc/systemd/logind.conf.d/testhost.conf"
# Work that comes by the clock would only make runs differ.
for timer in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
	fstrim.timer systemd-tmpfiles-clean.timer; do
	chroot "$root" systemctl -q mask "$timer"
done
# It has no graphics.
chroot "$root" systemctl -q mask e2scrub_reap.service modprobe@drm.service
# Nor is there anything to be done after an update of the root.
touch "$root/etc/.updated" "$root/var/.updated"

# How to reach the network from where it was built, and what mmdebstrap told
# dpkg to leave out: packages that are installed later come whole.
rm -f "$root"/etc/apt/apt.conf.d/99mmdebstrap "$root"/etc/dpkg/dpkg.cfg.d/99mmdebstrap \
	"$root"/etc/apt/sources.list.d/*
: >"$root/etc/apt/sources.list"
rm -rf "$root"/var/cache/debconf/*-old "$root"/var/lib/dpkg/*-old "$root"/usr/share/qemu/edk2-[!x]* \
	"$root"/usr/share/qemu/*.dtb
