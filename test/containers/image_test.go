package containers

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	godbus "github.com/godbus/dbus/v5"

	"github.com/auberge-vm/auberge/dbus"
	"github.com/auberge-vm/auberge/test/testbed"
)

// An imageVM is a VM prepared for containers, in which Incus is driven by hand:
// what the image holds is tested, and not who makes use of it.
type imageVM struct {
	t   *testing.T
	bed *testbed.Bed
}

// imageStep bounds what is done in one go; nothing is asserted on it.
const imageStep = 5 * time.Minute

func newImageVM(t *testing.T) *imageVM {
	t.Helper()
	log, err := os.CreateTemp(t.TempDir(), "daemons")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	bed, err := testbed.New(t.Context(), testbed.Options{Bin: bin, Image: image, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	v := &imageVM{t: t, bed: bed}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := v.command(context.Background(), "", "vmc", "logs", "termina").CombinedOutput()
			said, _ := os.ReadFile(log.Name())
			lines := strings.SplitAfter(string(out), "\n")
			t.Logf("the VM logged at last:\n%s\ndaemons said:\n%s", strings.Join(lines[max(0, len(lines)-60):], ""), said)
		}
		bed.Close()
	})
	ctx, cancel := context.WithTimeout(t.Context(), imageStep)
	defer cancel()
	if _, err := bed.StartConcierge(ctx, "--accel", "tcg"); err != nil {
		t.Fatal(err)
	}
	v.run("", "vmc", "config", "termina", "--memory", "3G", "--cpus", "2")
	v.run("", "vmc", "start", "termina", "--size", "8G", "--cpus", "2")
	return v
}

func (v *imageVM) command(ctx context.Context, input, name string, args ...string) *cmd {
	c := v.bed.Command(testbed.Alice, name, args...)
	c.Stdin = strings.NewReader(input)
	return &cmd{Cmd: c, ctx: ctx}
}

// run runs a program as alice and returns what it printed.
func (v *imageVM) run(input, name string, args ...string) string {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(v.t.Context(), imageStep)
	defer cancel()
	out, err := v.command(ctx, input, name, args...).CombinedOutput()
	if err != nil {
		v.t.Fatalf("%s %s: %v\n%s\n%s", name, strings.Join(args, " "), err, input, out)
	}
	return strings.TrimSpace(string(out))
}

// root runs a script in the VM as root.
func (v *imageVM) root(script string) string {
	v.t.Helper()
	return v.run("", "vsh", "--user", "root", "termina", "--", "INCUS_DIR=/mnt/stateful/incus", "bash", "-ec", script)
}

// inside runs a script in the container as root, user as its user.
func (v *imageVM) inside(script string) string {
	v.t.Helper()
	return v.run(script, "vsh", "--user", "root", "termina", "--", "INCUS_DIR=/mnt/stateful/incus", "incus", "exec", "penguin", "--", "bash", "-es")
}

func (v *imageVM) user(script string) string {
	v.t.Helper()
	return v.run(script, "vsh", "--user", "root", "termina", "--", "INCUS_DIR=/mnt/stateful/incus", "incus", "exec", "penguin", "--", "su", "-", "pip", "-c", "bash -es")
}

// The image by itself: Incus in a VM of ours runs the container image that
// comes with it, and what is in that works for a container's user.
func TestImage(t *testing.T) {
	v := newImageVM(t)
	if got := v.root("findmnt -no OPTIONS /opt/google/cros-containers"); !strings.HasPrefix(got, "ro,nosuid,nodev") {
		t.Errorf("the tools are mounted %s", got)
	}
	v.root(`
mkdir -p $INCUS_DIR
(setsid /usr/libexec/incus/incusd --group incus-admin --logfile /mnt/stateful/incusd.log </dev/null >/dev/null 2>&1 &)
/usr/libexec/incus/incusd waitready --timeout=240`)
	v.root(`
incus storage create default btrfs source=/mnt/stateful/incus/storage-pools/default
incus network create incusbr0 ipv4.address=100.115.92.193/28 ipv4.nat=true ipv6.address=none
incus profile device add default root disk path=/ pool=default
incus profile device add default eth0 nic network=incusbr0 name=eth0
incus profile device add default cros-containers disk source=/opt/google/cros-containers path=/opt/google/cros-containers readonly=true
incus profile set default raw.idmap="both 1000 1000" security.nesting=true </dev/null`)
	v.root("cd /opt/google/cros-containers/image && incus image import metadata.tar.xz rootfs.squashfs --alias penguin")
	v.root("incus init penguin penguin </dev/null && incus start penguin")
	v.root("until incus exec penguin -- test -S /run/systemd/private; do sleep 0.2; done")

	if state := v.inside("systemctl is-system-running --wait || systemctl --failed"); state != "running" {
		t.Errorf("systemd settles as %s", state)
	}
	v.inside("useradd --uid 1000 --create-home --groups sudo --shell /bin/bash pip && loginctl enable-linger pip")
	for name, test := range map[string]func(*imageVM){"network": (*imageVM).network, "user": (*imageVM).usersManager,
		"vsock": (*imageVM).vsock, "packages": (*imageVM).packages} {
		t.Run(name, func(t *testing.T) { test(&imageVM{t: t, bed: v.bed}) })
	}
}

func (v *imageVM) network() {
	t := v.t
	v.inside("until ip -4 -o addr show eth0 | grep -q inet; do sleep 0.2; done; ping -c1 -W60 100.115.92.193")
	fields := strings.Fields(v.inside("ip -4 -o addr show eth0"))
	p, err := netip.ParsePrefix(fields[3])
	if err != nil || p.Masked() != netip.MustParsePrefix("100.115.92.192/28") || p.Addr().String() == "100.115.92.193" {
		t.Errorf("the container's address is %q", fields)
	}
	if got := v.inside("getent hosts $(hostname).incus; hostname"); got != p.Addr().String()+"  penguin.incus\npenguin" {
		t.Errorf("its names: %q", got)
	}
	if got := v.inside("find /etc/apt/sources.list.d -type f; cat /etc/apt/sources.list"); got != "" {
		t.Errorf("it looks for packages at %s", got)
	}
}

// A user who never logs in has a manager of their own, and may become root.
func (v *imageVM) usersManager() {
	t := v.t
	v.inside("until test -S /run/user/1000/systemd/private; do sleep 0.2; done")
	if got := v.user("XDG_RUNTIME_DIR=/run/user/1000 systemctl --user is-enabled dbus.socket cros-garcon.service; sudo -n id -u"); got != "static\nenabled\n0" {
		t.Errorf("the user has %q", got)
	}
	if got := v.inside("stat -c %u:%g /home/pip"); got != "1000:1000" {
		t.Errorf("the user's home is of %s", got)
	}
	if got := v.root("stat -c %u:%g /mnt/stateful/incus/storage-pools/default/containers/penguin/rootfs/home/pip"); got != "1000:1000" {
		t.Errorf("outside, the user's home is of %s", got)
	}
}

// A listener on vsock in the container is reached from the host, and knows by
// its address that it is the host who calls.
const vsockListener = `exec perl -e '
socket(my $s, 40, 1, 0) or die "socket: $!";
bind($s, pack("S S L L C x3", 40, 0, 10000, 0xffffffff, 0)) or die "bind: $!";
listen($s, 5) or die "listen: $!";
open(my $ready, ">", "/tmp/vsock-ready"); close $ready;
my $peer = accept(my $c, $s) or die "accept: $!";
my (undef, undef, $port, $cid) = unpack("S S L L", $peer);
syswrite($c, "uid $< is called by cid $cid\n");
'`

func (v *imageVM) vsock() {
	t := v.t
	ctx, cancel := context.WithTimeout(t.Context(), imageStep)
	defer cancel()
	listener := v.command(ctx, vsockListener, "vsh", "--user", "root", "termina", "--", "INCUS_DIR=/mnt/stateful/incus",
		"incus", "exec", "penguin", "--", "su", "-", "pip", "-c", "bash -es")
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if out, err := listener.CombinedOutput(); err != nil {
			t.Errorf("the listener: %v: %s", err, out)
		}
	}()
	defer func() {
		if t.Failed() {
			cancel()
		}
		<-ended
	}()
	v.inside("until test -e /tmp/vsock-ready; do sleep 0.2; done")
	bus, err := v.bed.Dial(t.Context(), testbed.Alice)
	if err != nil {
		t.Fatal(err)
	}
	defer bus.Close()
	var fd godbus.UnixFD
	if err := bus.Object(dbus.ConciergeName, dbus.ConciergePath).CallWithContext(ctx, dbus.Concierge1Name+".ConnectVsock", 0,
		"termina", "", uint32(10000)).Store(&fd); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "stream")
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	said, err := io.ReadAll(conn)
	if err != nil || string(said) != "uid 1000 is called by cid 2\n" {
		t.Errorf("the container says %q, %v", said, err)
	}
}

// PackageKit serves the user, whom nothing can ask for a password.
func (v *imageVM) packages() {
	t := v.t
	v.user(`
mkdir -p p/DEBIAN p/usr/share/greeting && echo hello > p/usr/share/greeting/text
printf 'Package: greeting\nVersion: 1.0\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: says hello\n' > p/DEBIAN/control
dpkg-deb --build p greeting.deb
pkcon --noninteractive --plain --allow-untrusted install-local greeting.deb`)
	if got := v.inside("cat /usr/share/greeting/text; dpkg-query -Wf '${Status}' greeting"); got != "hello\ninstall ok installed" {
		t.Errorf("of the package there is %q", got)
	}
	v.user("pkcon --noninteractive --plain remove greeting")
	if got := v.inside("ls /usr/share/greeting 2>&1 || true"); !strings.Contains(got, "No such file") {
		t.Errorf("the package left %q", got)
	}
}
