package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/auberge-vm/auberge/protos/containerpb"
	"github.com/auberge-vm/auberge/protos/vmtoolspb"
)

// A host writes down what it is asked for.
type host struct {
	pb.UnimplementedContainerListenerServer
	asked []string
	err   error
}

func (h *host) note(token string, what ...string) (*vmtoolspb.EmptyMessage, error) {
	h.asked = append(h.asked, token+": "+strings.Join(what, "|"))
	return &vmtoolspb.EmptyMessage{}, h.err
}

func (h *host) OpenUrl(_ context.Context, req *pb.OpenUrlRequest) (*vmtoolspb.EmptyMessage, error) {
	return h.note(req.GetToken(), "url", req.GetUrl())
}

func (h *host) OpenTerminal(_ context.Context, req *pb.OpenTerminalRequest) (*vmtoolspb.EmptyMessage, error) {
	return h.note(req.GetToken(), append([]string{"terminal"}, req.GetParams()...)...)
}

func (h *host) SelectFile(_ context.Context, req *pb.SelectFileRequest) (*pb.SelectFileResponse, error) {
	_, err := h.note(req.GetToken(), "select", req.GetType(), req.GetTitle(), req.GetDefaultPath(), req.GetAllowedExtensions())
	return &pb.SelectFileResponse{Files: []string{"/a b", "/c"}}, err
}

func TestClient(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args  []string
		host  error
		asked []string
		out   string
		fails string
	}{
		"url":               {args: []string{"--url", "https://a.example/?q=1&r=2"}, asked: []string{"tok: url|https://a.example/?q=1&r=2"}},
		"urls":              {args: []string{"--url", "mailto:a@b", "/home/u/a b.html"}, asked: []string{"tok: url|mailto:a@b", "tok: url|file:///home/u/a%20b.html"}},
		"no url":            {args: []string{"--url"}, fails: "needs URLs"},
		"no scheme":         {args: []string{"--url", "https://good", "what"}, fails: "neither a URL"},
		"relative file":     {args: []string{"--url", "a/b:c"}, fails: "neither a URL"},
		"not UTF-8":         {args: []string{"--url", "http://\xff"}, fails: "UTF-8"},
		"long":              {args: []string{"--url", "http://" + strings.Repeat("x", 1<<20)}, fails: "longer"},
		"refused":           {args: []string{"--url", "file:///x/../y"}, host: status.Error(codes.InvalidArgument, "no ..!"), asked: []string{"tok: url|file:///x/../y"}, fails: "refused: no ..!"},
		"too many":          {args: []string{"--url", "http://a"}, host: status.Error(codes.ResourceExhausted, "10 in 15 s"), asked: []string{"tok: url|http://a"}, fails: "try again"},
		"terminal":          {args: []string{"--terminal"}, asked: []string{"tok: terminal"}},
		"terminal with":     {args: []string{"--terminal", "ls", "-la", "--url"}, asked: []string{"tok: terminal|ls|-la|--url"}},
		"select":            {args: []string{"--selectfile"}, asked: []string{"tok: select|open-file|||"}, out: "/a b\n/c\n"},
		"select much":       {args: []string{"--selectfile", "--type", "saveas-file", "--title=T", "--path", "x", "--extensions", "png,jpg"}, asked: []string{"tok: select|saveas-file|T|" + here + "/x|png,jpg"}, out: "/a b\n/c\n"},
		"select a type":     {args: []string{"--selectfile", "--type", "x"}, fails: "is none of"},
		"select with":       {args: []string{"--selectfile", "x"}, fails: "unexpected"},
		"nothing":           {fails: "needs one of"},
		"two":               {args: []string{"--url", "--terminal", "http://a"}, fails: "needs one of"},
		"both modes":        {args: []string{"--server"}, fails: "server"},
		"an unknown option": {args: []string{"--what"}, fails: "what"},
	} {
		t.Run(name, func(t *testing.T) {
			h := &host{err: c.host}
			o := options{clientOptions: clientOptions{tokenPath: filepath.Join(t.TempDir(), "token"), dial: serve(t, h), patience: time.Minute}}
			if err := os.WriteFile(o.tokenPath, []byte("tok"), 0o644); err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			cmd := command(&o)
			cmd.SetOut(&out)
			cmd.SetArgs(append([]string{"--client"}, c.args...))
			err := cmd.ExecuteContext(t.Context())
			if c.fails == "" && err != nil || c.fails != "" && (err == nil || !strings.Contains(err.Error(), c.fails)) {
				t.Errorf("%v, want %q", err, c.fails)
			}
			if diff := cmp.Diff(c.asked, h.asked); diff != "" {
				t.Error(diff)
			}
			if out.String() != c.out {
				t.Errorf("printed %q", out.String())
			}
		})
	}
}

func TestClientWithoutAHost(t *testing.T) {
	o := options{clientOptions: clientOptions{tokenPath: filepath.Join(t.TempDir(), "token"), dial: func(context.Context) (net.Conn, error) { return nil, os.ErrNotExist }, patience: 200 * time.Millisecond}}
	run := func() error {
		cmd := command(&o)
		cmd.SetArgs([]string{"--client", "--url", "http://a"})
		return cmd.ExecuteContext(t.Context())
	}
	if err := run(); err == nil || !strings.Contains(err.Error(), "token") {
		t.Errorf("without a token: %v", err)
	}
	if err := os.WriteFile(o.tokenPath, []byte("tok"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := run(); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("without a host: %v", err)
	}
}

func serve(t *testing.T, h *host) func(context.Context) (net.Conn, error) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	face := grpc.NewServer()
	pb.RegisterContainerListenerServer(face, h)
	done := make(chan struct{})
	go func() { defer close(done); face.Serve(l) }()
	t.Cleanup(func() { face.Stop(); <-done })
	return func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
}

// The scripts that programs of a container start: what they are given is for
// the host, also when it looks like an option.
func TestHandlers(t *testing.T) {
	for name, c := range map[string]struct {
		script string
		args   []string
		asked  []string
		fails  string
	}{
		"url":                {script: "url", args: []string{"http://a", "mailto:b"}, asked: []string{"tok: url|http://a", "tok: url|mailto:b"}},
		"url like an option": {script: "url", args: []string{"--terminal", "--title", "x"}, fails: "neither a URL"},
		"no url":             {script: "url", fails: "needs URLs"},
		"terminal":           {script: "terminal", asked: []string{"tok: terminal"}},
		"program":            {script: "terminal", args: []string{"ls", "-la"}, asked: []string{"tok: terminal|ls|-la"}},
		"program after -e":   {script: "terminal", args: []string{"-e", "ls", "--url"}, asked: []string{"tok: terminal|ls|--url"}},
		"program after --":   {script: "terminal", args: []string{"--", "ls", "--", "x"}, asked: []string{"tok: terminal|ls|--|x"}},
		"option after -e":    {script: "terminal", args: []string{"-e", "--url", "http://a"}, asked: []string{"tok: terminal|--url|http://a"}},
	} {
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile("../../../packaging/image/container/files/usr/bin/garcon-" + c.script + "-handler")
			if err != nil {
				t.Fatal(err)
			}
			const garcon = "/opt/google/cros-containers/bin/garcon"
			if !strings.Contains(string(text), garcon) {
				t.Fatalf("the script does not start %s", garcon)
			}
			// The real script; printf, in the program's place, prints the arguments.
			sh := exec.Command("sh", append([]string{"-c", strings.ReplaceAll(string(text), garcon, "printf '%s\\0'"), c.script}, c.args...)...)
			out, err := sh.Output()
			if err != nil {
				t.Fatal(err)
			}
			h := &host{}
			o := options{clientOptions: clientOptions{tokenPath: filepath.Join(t.TempDir(), "token"), dial: serve(t, h), patience: time.Minute}}
			if err := os.WriteFile(o.tokenPath, []byte("tok"), 0o644); err != nil {
				t.Fatal(err)
			}
			cmd := command(&o)
			cmd.SetArgs(strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00"))
			if err := cmd.ExecuteContext(t.Context()); c.fails == "" && err != nil || c.fails != "" && (err == nil || !strings.Contains(err.Error(), c.fails)) {
				t.Errorf("%v, want %q", err, c.fails)
			}
			if diff := cmp.Diff(c.asked, h.asked); diff != "" {
				t.Error(diff)
			}
		})
	}
}
