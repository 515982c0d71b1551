# shellcheck shell=bash
# Finding Debian's archive, and an apt of our own: sourced by install.sh and
# by ../image/build.sh. No address of any mirror is written down here or
# anywhere else in the repository; the one that this machine's apt is
# configured with is used, whatever it is (a local mirror, a mirror list, a
# cache). What comes from it is checked against Debian's archive keys.

DEBIAN_KEYRING=${DEBIAN_KEYRING:-/usr/share/keyrings/debian-archive-keyring.gpg}

# apt_mirrors main|security
#
# Prints the base addresses of Debian's archive that apt is configured with,
# best first, one a line. Reads both source formats, by letting apt read them.
apt_mirrors() {
	{
		apt_mirrors_by_origin "$1"
		apt_mirrors_by_suite "$1"
	} | apt_expand_mirror_lists | awk '!/^cdrom:/ && !seen[$0]++'
}

# The sure way: what calls itself Debian in its own Release file. Knows
# nothing before the first apt-get update.
apt_mirrors_by_origin() {
	local label=Debian
	[ "$1" = security ] && label=Debian-Security
	apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI)' \
		'Created-By: Packages' 2>/dev/null |
		sed -n "s#^Debian|$label|main|\(.*[^/]\)/*\$#\1#p" || true
}

# The fallback: what apt would fetch for a suite of Debian's. A third party
# may use the same suite names; its signature then gives it away (apt_private
# accepts Debian's keys only).
apt_mirrors_by_suite() {
	local code suites
	code=$(. /etc/os-release && echo "${VERSION_CODENAME:-sid}")
	case $1 in
	main) suites="$code|oldstable|stable|testing|unstable|sid" ;;
	security) suites="$code-security|stable-security|oldstable-security" ;;
	esac
	apt-get update --print-uris 2>/dev/null |
		sed -nE "s#^'(.*)/dists/($suites)/(In)?Release(\.gpg)?'.*#\1#p" || true
}

# mirror+file: names a local list of mirrors. What comes after us (a chroot,
# another user name space) may not see that file, so take the addresses out.
apt_expand_mirror_lists() {
	local uri file
	while IFS= read -r uri; do
		case $uri in
		mirror+file:*)
			file=/$(printf %s "${uri#mirror+file:}" | sed 's#^/*##')
			sed -E 's/[[:space:]].*//; s#/+$##; /^(#|$)/d' "$file" 2>/dev/null || true
			;;
		*) printf '%s\n' "$uri" ;;
		esac
	done
}

# apt_acquire_options
#
# How this machine reaches the network (proxies, certificates, retries), as
# apt.conf lines. The rest of the machine's configuration stays out: its hooks
# are for its own packages.
apt_acquire_options() {
	apt-config dump 2>/dev/null |
		grep -E '^Acquire::(http|https|ftp|tor|Retries|ForceIPv[46]|Max-FutureTime|Check-Date|Check-Valid-Until)\b' |
		grep -v ' "";$' || true
}

# apt_private DIR SUITE=MIRROR...
#
# Makes a private apt below DIR, which knows the main component of each SUITE
# and nothing about what is installed here, and fetches its lists. Use it with
# `apt_in DIR apt-get ...`. Touches nothing outside DIR.
apt_private() {
	local dir=$1 source arch
	shift
	arch=$(dpkg --print-architecture)
	mkdir -p "$dir/state/lists/partial" "$dir/cache/archives/partial"
	for source in "$@"; do
		echo "deb [signed-by=$DEBIAN_KEYRING] ${source#*=} ${source%%=*} main"
	done >"$dir/sources.list"
	{
		apt_acquire_options
		cat <<-CONF
			APT::Architecture "$arch";
			APT::Architectures { "$arch"; };
			APT::Sandbox::User "";
			Acquire::Languages "none";
			Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
			Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
			Dir::State "$dir/state";
			Dir::State::status "/dev/null";
			Dir::Cache "$dir/cache";
			Dir::Etc::Main "/dev/null";
			Dir::Etc::Parts "/dev/null";
			Dir::Etc::Preferences "/dev/null";
			Dir::Etc::PreferencesParts "/dev/null";
			Dir::Etc::SourceList "$dir/sources.list";
			Dir::Etc::SourceParts "/dev/null";
		CONF
	} >"$dir/apt.conf"
	apt_in "$dir" apt-get -q -o APT::Update::Error-Mode=any update >&2
}

# apt_in DIR COMMAND...: runs an apt command with the private apt below DIR.
apt_in() {
	local dir=$1
	shift
	APT_CONFIG=$dir/apt.conf "$@"
}

# apt_find DIR main|security SUITE
#
# Makes a private apt for SUITE below DIR from the first configured mirror
# that has it, signed by Debian, and prints that mirror's address.
apt_find() {
	local dir=$1 kind=$2 suite=$3 mirror
	while IFS= read -r mirror; do
		rm -rf "$dir"
		if apt_private "$dir" "$suite=$mirror"; then
			printf '%s\n' "$mirror"
			return 0
		fi
	done < <(apt_mirrors "$kind")
	echo "no Debian mirror in apt's configuration has $suite" >&2
	return 1
}
