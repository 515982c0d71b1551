package vshd_test

import (
	"context"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/auberge-vm/auberge/guest/vshd"
	"github.com/auberge-vm/auberge/protos/vshpb"
)

// serveOnce dials a listener, as vshd in a container dials the host, and
// serves one session on the stream. The returned client is the host's end.
func serveOnce(t *testing.T, req *vshpb.SetupConnectionRequest, args ...vshd.Option) *client {
	t.Helper()
	l := listen(t)
	defer l.Close()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		quiet(append([]vshd.Option{vshd.InContainer()}, args...)...).ServeConn(ctx, conn)
	}()
	t.Cleanup(func() {
		stop()
		<-done
	})
	host, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // the server ends by itself with its session
		host.Close()
		<-done
	})
	c := &client{t: t, conn: host, r: vshpb.NewReader(host), w: vshpb.NewWriter(host)}
	if err := c.w.Write(req); err != nil {
		t.Fatal(err)
	}
	if err := c.r.Read(&c.resp); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestContainerSession(t *testing.T) {
	t.Setenv("TERM", "none")
	req := plain("echo $GIVEN $TERM; id -un; exit 3")
	req.Target = "penguin"
	got := serveOnce(t, req, vshd.WithEnv([]string{"GIVEN=one", "HOME=/nowhere"})).ready().wait()
	if want := "one linux\n" + self(t) + "\n"; got.stdout != want || got.code != 3 {
		t.Errorf("got %q, code %d; want %q, code 3", got.stdout, got.code, want)
	}
}

func TestContainerSessionOverridesTheInherited(t *testing.T) {
	req := plain("echo $GIVEN $HOME")
	req.Target, req.Env = "penguin", map[string]string{"GIVEN": "two"}
	dir := t.TempDir()
	passwd := "who:x:" + strconv.Itoa(os.Geteuid()) + ":0::" + dir + ":/bin/sh\n"
	got := serveOnce(t, req, vshd.WithEnv([]string{"GIVEN=one", "HOME=/nowhere"}), vshd.WithEtc(etc(t, passwd, ""))).ready().wait()
	if want := "two " + dir + "\n"; got.stdout != want {
		t.Errorf("got %q, want %q", got.stdout, want)
	}
}

func TestContainerRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		req  *vshpb.SetupConnectionRequest
		want string
	}{
		"the VM itself": {&vshpb.SetupConnectionRequest{Target: vshpb.Target}, "a container only"},
		"no target":     {&vshpb.SetupConnectionRequest{}, "no target"},
		"an unknown user": {&vshpb.SetupConnectionRequest{Target: "penguin", User: "no-such-user"},
			`no user "no-such-user" in this container`},
	} {
		t.Run(name, func(t *testing.T) {
			if why := serveOnce(t, c.req).refused(); !strings.Contains(why, c.want) {
				t.Errorf("refused with %q, want %q", why, c.want)
			}
		})
	}
	t.Run("a user who is not there", func(t *testing.T) {
		req := &vshpb.SetupConnectionRequest{Target: "penguin"}
		want := "no user with uid " + strconv.Itoa(os.Geteuid()) + " in this container"
		if why := serveOnce(t, req, vshd.WithEtc(etc(t, "other:x:77:77::/:/bin/sh\n", ""))).refused(); why != want {
			t.Errorf("refused with %q, want %q", why, want)
		}
	})
}
