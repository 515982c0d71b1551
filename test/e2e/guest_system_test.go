package e2e

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/protos/vmtoolspb"
	"github.com/auberge-vm/auberge/vmm"
)

// A liveGuest is a running VM and its agent.
type liveGuest struct {
	*client
	vm   string
	m    vmtoolspb.MaitredClient
	disk string // the image of /dev/vdb
}

// sh runs a script in the guest as root.
func (g *liveGuest) sh(t *testing.T, script string) string {
	t.Helper()
	c := *g.client
	c.t = t
	return c.rootShell(g.vm, script)
}

// user runs a script in the guest as a user of its.
func (g *liveGuest) user(t *testing.T, user, script string) string {
	t.Helper()
	out, errs, err := g.run("vsh", "--user", user, g.vm, "--", "sh", "-c", script)
	if err != nil {
		t.Fatalf("%s: %v: %s%s", script, err, out, errs)
	}
	return strings.TrimSpace(out)
}

func (g *liveGuest) setTimezone(t *testing.T) {
	set := func(name string, bind bool) error {
		_, err := g.m.SetTimezone(t.Context(), &vmtoolspb.SetTimezoneRequest{TimezoneName: name, UseBindMount: bind})
		return err
	}
	for _, tt := range []struct {
		name string
		bind bool
		want string
	}{
		{"Asia/Tokyo", false, "+0900 link"},
		{"Asia/Kolkata", true, "+0530 file mounted"},
		{"America/New_York", true, "-0500 file mounted"},
		{"Europe/Paris", false, "+0100 link"},
	} {
		if err := set(tt.name, tt.bind); err != nil {
			t.Fatal(err)
		}
		got := g.sh(t, `echo $(date -d @1700000000 +%z) $([ -L /etc/localtime ] && echo link || echo file) $(mountpoint -q /etc/localtime && echo mounted)`)
		if got != tt.want {
			t.Errorf("%s, bind %v: %q, want %q", tt.name, tt.bind, got, tt.want)
		}
	}
	if err := set("Europe/Atlantis", false); status.Code(err) != codes.NotFound || !strings.Contains(err.Error(), "Europe/Atlantis") {
		t.Errorf("a zone that is not there: %v", err)
	}
	for _, name := range []string{"", "/etc/passwd", "../../../etc/passwd"} {
		if err := set(name, true); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%q: %v", name, err)
		}
	}
	if got := g.sh(t, "date -d @1700000000 +%z"); got != "+0100" {
		t.Errorf("after refusals the zone is %s", got)
	}
}

func (g *liveGuest) configureContainerGuest(t *testing.T) {
	const token = "3c0a9b5e-8d55-4b07-9c5e-2f6d1f7f6f10"
	if _, err := g.m.ConfigureContainerGuest(t.Context(), &vmtoolspb.ConfigureContainerGuestRequest{ContainerToken: token, VmUsername: "emil"}); err != nil {
		t.Fatal(err)
	}
	if got := g.user(t, "chronos", "id -u; cat /dev/.container_token"); got != "1000\n"+token {
		t.Errorf("the user sees %q", got)
	}
	_, err := g.m.ConfigureContainerGuest(t.Context(), &vmtoolspb.ConfigureContainerGuestRequest{ContainerToken: token + "0"})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("37 bytes: %v", err)
	}
}

func (g *liveGuest) setUpUser(t *testing.T) {
	setUp := func(req *vmtoolspb.SetUpUserRequest) *vmtoolspb.SetUpUserResponse {
		t.Helper()
		r, err := g.m.SetUpUser(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := setUp(&vmtoolspb.SetUpUserRequest{Username: "emil", GroupNames: []string{"video"}}); !r.Success || r.Username != "chronos" {
		t.Errorf("uid 1000: %v", r)
	}
	if r := setUp(&vmtoolspb.SetUpUserRequest{Username: "emil", Uid: proto.Uint32(1500), GroupNames: []string{"video", "audio"}}); !r.Success || r.Username != "emil" {
		t.Errorf("uid 1500: %v", r)
	}
	got := g.user(t, "emil", "id -u; id -Gn; pwd; touch ~/mine && stat -c %U:%G:%a ~ ~/mine ~/.bashrc")
	if want := "1500\nemil audio video\n/home/emil\nemil:emil:700\nemil:emil:644\nemil:emil:644"; got != want {
		t.Errorf("emil is %q, want %q", got, want)
	}
	if got := g.user(t, "chronos", "id -Gn"); got != "chronos video" {
		t.Errorf("chronos is in %q", got)
	}
	if got := g.sh(t, "pwck -rq; grpck -rq; echo $?"); got != "0" {
		t.Errorf("the account files: %s", got)
	}
	for what, req := range map[string]*vmtoolspb.SetUpUserRequest{
		"root's uid":           {Username: "frida", Uid: proto.Uint32(0)},
		"a capital":            {Username: "Frida"},
		"another's name":       {Username: "emil", Uid: proto.Uint32(1501)},
		"a group that is none": {Username: "frida", Uid: proto.Uint32(1501), GroupNames: []string{"nosuchgroup"}},
	} {
		if r := setUp(req); r.Success || r.FailureReason == "" {
			t.Errorf("%s: %v", what, r)
		}
	}
	if got := g.sh(t, "grep -c frida /etc/passwd /etc/group; true"); got != "/etc/passwd:0\n/etc/group:0" {
		t.Errorf("of refused users: %s", got)
	}
}

// connections opens a connection from eth0 and one over loopback, and tells in
// files what became of them.
const connections = `
use strict; use IO::Socket::INET;
sub note { my ($file, $text) = @_; open(my $f, ">", "$file.new"); print $f $text; close $f; rename "$file.new", $file }
sub pair { my ($from, $to) = @_;
	my $l = IO::Socket::INET->new(LocalAddr => $to, Listen => 1) or die "listen $to: $!";
	my $c = IO::Socket::INET->new(LocalAddr => $from, PeerAddr => $to, PeerPort => $l->sockport) or die "connect $to: $!";
	return ($c, $l->accept) }
my ($c, $s) = pair($ARGV[0], "192.0.2.1");
my ($lc, $ls) = pair("127.0.0.1", "127.0.0.1");
note("/run/ready", "ready");
my $buf; my $n = sysread($c, $buf, 1); my $why = defined $n ? "read $n" : "$!";
syswrite($lc, "x"); sysread($ls, $buf, 1);
note("/run/stale", "$why, loopback $buf");
`

// await is a line of shell that waits for a condition.
func await(condition string) string {
	return "i=0; until " + condition + "; do i=$((i+1)); [ $i -lt 600 ] || exit 99; sleep 0.1; done; "
}

func awaitFile(file string) string { return await("[ -e "+file+" ]") + "cat " + file }

func (g *liveGuest) onHostNetworkChanged(t *testing.T) {
	address := ipv4(g.info(g.vm).Ipv4Address)
	g.sh(t, "ip addr add 192.0.2.1/32 dev lo; ip -6 addr add 2001:db8::5/64 dev eth0 nodad; cp /bin/sleep /run/dnsmasq")
	for _, argv := range [][]string{{"perl", "-e", connections, address.String()}, {"sh", "-c", "/run/dnsmasq 1000; echo $? > /run/hup.new; mv /run/hup.new /run/hup"}} {
		r, err := g.m.LaunchProcess(t.Context(), &vmtoolspb.LaunchProcessRequest{Argv: argv, UseConsole: true})
		if err != nil || r.Status != vmtoolspb.ProcessStatus_LAUNCHED {
			t.Fatalf("%v, %v", r, err)
		}
	}
	g.sh(t, awaitFile("/run/ready")+"; "+await("grep -qx dnsmasq /proc/[0-9]*/comm"))
	if _, err := g.m.OnHostNetworkChanged(t.Context(), &vmtoolspb.EmptyMessage{}); err != nil {
		t.Fatal(err)
	}
	if got := g.sh(t, awaitFile("/run/stale")); got != "Software caused connection abort, loopback x" {
		t.Errorf("the connections: %s", got)
	}
	if got := g.sh(t, awaitFile("/run/hup")); got != "129" {
		t.Errorf("the resolver ended with %s, want SIGHUP", got)
	}
	if got := g.sh(t, "ip -6 -o addr show dev eth0"); strings.Contains(got, "2001:db8::5") || !strings.Contains(got, "fe80:") {
		t.Errorf("IPv6 afterwards: %s", got)
	}
	if got := g.sh(t, "ip -4 -o addr show dev eth0"); !strings.Contains(got, address.String()) {
		t.Errorf("IPv4 afterwards: %s", got)
	}
}

// configureNetwork gives the guest another address, and its own again; the
// host's way to it does not depend on any.
func (g *liveGuest) configureNetwork(t *testing.T) {
	wire := func(dotted string) uint32 {
		b := netip.MustParseAddr(dotted).As4()
		return binary.NativeEndian.Uint32(b[:])
	}
	configure := func(address, mask, gateway string) error {
		_, err := g.m.ConfigureNetwork(t.Context(), &vmtoolspb.NetworkConfigRequest{
			Ipv4Config:   &vmtoolspb.IPv4Config{Address: wire(address), Netmask: wire(mask), Gateway: wire(gateway)},
			ResolvConfig: &vmtoolspb.ResolvConfig{Nameservers: []string{gateway}}})
		return err
	}
	const state = "ip -4 -o addr show dev eth0 | sed 's/.*inet \\([^ ]*\\) .*/\\1/'; ip route show default | cut -d' ' -f1-5; grep nameserver /etc/resolv.conf"
	own := netip.MustParseAddr(ipv4(g.info(g.vm).Ipv4Address).String())
	for _, a := range []struct{ address, prefix, mask, gateway string }{
		{"198.51.100.5", "/24", "255.255.255.0", "198.51.100.1"},
		{own.String(), "/29", "255.255.255.248", own.Prev().String()},
	} {
		if err := configure(a.address, a.mask, a.gateway); err != nil {
			t.Fatal(err)
		}
		want := a.address + a.prefix + "\ndefault via " + a.gateway + " dev eth0\nnameserver " + a.gateway
		if got := g.sh(t, state); got != want {
			t.Errorf("the network is %q, want %q", got, want)
		}
	}
	for what, err := range map[string]error{
		"no address":          configure("0.0.0.0", "255.255.255.0", "198.51.100.1"),
		"a gateway elsewhere": configure("198.51.100.5", "255.255.255.0", "192.0.2.1"),
		"a mask with holes":   configure("198.51.100.5", "255.0.255.0", "198.51.100.1"),
	} {
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got := g.sh(t, state); !strings.HasPrefix(got, own.String()+"/29\n") {
		t.Errorf("after refusals the network is %q", got)
	}
}

func (g *liveGuest) resetIPv6(t *testing.T) {
	g.sh(t, "ip -6 addr add 2001:db8::6/64 dev eth0 nodad")
	if _, err := g.m.ResetIPv6(t.Context(), &vmtoolspb.EmptyMessage{}); err != nil {
		t.Fatal(err)
	}
	if got := g.sh(t, "ip -6 -o addr show dev eth0"); strings.Contains(got, "2001:db8::6") || !strings.Contains(got, "fe80:") {
		t.Errorf("IPv6 afterwards: %s", got)
	}
}

// launchRespawn starts what ends at once; after ten more times it is left.
func (g *liveGuest) launchRespawn(t *testing.T) {
	r, err := g.m.LaunchProcess(t.Context(), &vmtoolspb.LaunchProcessRequest{Argv: []string{"sh", "-c", "echo run >> /run/respawned"}, Respawn: true})
	if err != nil || r.Status != vmtoolspb.ProcessStatus_LAUNCHED {
		t.Fatalf("%v, %v", r, err)
	}
	g.sh(t, await("dmesg | grep -q 'it ended too often.*service=sh'"))
	if got := g.sh(t, "wc -l < /run/respawned"); got != "11" {
		t.Errorf("it ran %s times, want once and ten more", got)
	}
}

func (g *liveGuest) launchOnConsole(t *testing.T) {
	const word = "written-to-the-console"
	r, err := g.m.LaunchProcess(t.Context(), &vmtoolspb.LaunchProcessRequest{
		Argv: []string{"sh", "-c", fmt.Sprintf("readlink /proc/self/fd/0; echo %s", word)}, UseConsole: true, WaitForExit: true})
	if err != nil || r.Status != vmtoolspb.ProcessStatus_EXITED || r.Code != 0 {
		t.Fatalf("%v, %v", r, err)
	}
	if got := g.console(t); !strings.Contains(got, "/dev/console\r\n"+word) {
		t.Errorf("the console's end: %s", got[max(len(got)-200, 0):])
	}
}

// console returns the tail of what the guest wrote to its console.
func (g *liveGuest) console(t *testing.T) string {
	t.Helper()
	m, err := vmm.Attach(t.Context(), g.dir(t))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Release()
	tail, err := m.Console(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return string(tail)
}

// dir is the VM's directory; it is the only one.
func (g *liveGuest) dir(t *testing.T) string {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(g.bed.RuntimeDir, "vms", "*"))
	if err != nil || len(dirs) != 1 {
		t.Fatalf("VMs: %v, %v", dirs, err)
	}
	return dirs[0]
}
