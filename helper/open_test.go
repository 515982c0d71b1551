package helper_test

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/helper"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/test/syncbuf"
	"github.com/auberge-vm/auberge/vsock"
)

// Files are opened with the rights of the user that is named, and with no
// others; the user database says what groups these are.
func TestOpen(t *testing.T) {
	needRoot(t)
	dir := publicDir(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	link := func(name, to string) string {
		if err := os.Symlink(to, at(name)); err != nil {
			t.Fatal(err)
		}
		return at(name)
	}
	own := write(t, at("own"), "own", 0o600, stranger, stranger)
	roots := write(t, at("roots"), "secret", 0o600, 0, 0)
	rootsGroup := write(t, at("rootsgroup"), "secret", 0o640, 0, 0)
	others := write(t, at("others"), "secret", 0o600, stranger+1, stranger+1)
	claimed := write(t, at("claimed"), "claimed", 0o640, 0, 64105)
	nobodys := write(t, at("nogroup"), "nogroup", 0o640, 0, nobody)
	all := write(t, at("all"), "all", 0o444, 0, 0)
	odd := write(t, at("a\nb'$(id);\\\xff\xfe"), "odd", 0o600, stranger, stranger)
	if err := os.Mkdir(at("closed"), 0o700); err != nil {
		t.Fatal(err)
	}
	hidden := write(t, at("closed/file"), "hidden", 0o444, 0, 0)
	fifo, socket := at("fifo"), at("socket")
	if err := unix.Mkfifo(fifo, 0o666); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	long := "/" + strings.Repeat("x", unix.PathMax)
	is := func(uid uint32, groups ...uint32) policy.Caller { return policy.Caller{UID: uid, Groups: groups} }
	c := serve(t, func(s *helper.Server) { s.ReservedUIDs = helper.UIDRange{First: 60000, Last: 60010} })

	for name, test := range map[string]struct {
		caller  policy.Caller
		path    string
		mode    policy.Mode
		content string
		err     error
	}{
		"own file":                        {caller: is(stranger), path: own, content: "own"},
		"own file for writing":            {caller: is(stranger), path: own, mode: policy.ReadWrite, content: "own"},
		"root's file":                     {caller: is(stranger), path: roots, err: syscall.EACCES},
		"another user's file":             {caller: is(stranger), path: others, err: syscall.EACCES},
		"readable file for writing":       {caller: is(stranger), path: all, mode: policy.ReadWrite, err: syscall.EACCES},
		"by a group that is only claimed": {caller: is(stranger, stranger, 64105), path: claimed, err: syscall.EACCES},
		"by root's group, claimed":        {caller: is(nobody, nobody, 0), path: rootsGroup, err: syscall.EACCES},
		"by root's group alone":           {caller: is(nobody, 0), path: rootsGroup, err: syscall.EACCES},
		"by the account's group":          {caller: is(nobody), path: nobodys, content: "nogroup"},
		"by the account's, not given up":  {caller: is(nobody, nobody, 0), path: nobodys, content: "nogroup"},
		"as root":                         {caller: is(0), path: all, err: helper.ErrRefused},
		"as root, with groups":            {caller: is(0, 0), path: all, err: helper.ErrRefused},
		"as the system":                   {caller: is(999), path: all, err: helper.ErrRefused},
		"as a service":                    {caller: is(60000), path: all, err: helper.ErrRefused},
		"as another service":              {caller: is(60010), path: all, err: helper.ErrRefused},
		"beside the services":             {caller: is(60011), path: all, content: "all"},
		"as nobody at all":                {caller: is(1<<32 - 1), path: all, err: helper.ErrRefused},
		"in a closed directory":           {caller: is(stranger), path: hidden, err: syscall.EACCES},
		"through a link":                  {caller: is(stranger), path: link("to-own", own), content: "own"},
		"link to root's file":             {caller: is(stranger), path: link("to-roots", roots), err: syscall.EACCES},
		"link into a closed directory":    {caller: is(stranger), path: link("to-hidden", hidden), err: syscall.EACCES},
		"link to nothing":                 {caller: is(stranger), path: link("to-nothing", at("none")), err: syscall.ENOENT},
		"link to itself":                  {caller: is(stranger), path: link("loop", at("loop")), err: syscall.ELOOP},
		"odd bytes":                       {caller: is(stranger), path: odd, content: "odd"},
		"directory":                       {caller: is(stranger), path: dir, err: policy.ErrNotRegular},
		"FIFO":                            {caller: is(stranger), path: fifo, err: policy.ErrNotRegular},
		"FIFO for writing":                {caller: is(stranger), path: fifo, mode: policy.ReadWrite, err: policy.ErrNotRegular},
		"socket":                          {caller: is(stranger), path: socket, err: policy.ErrNotRegular},
		"device":                          {caller: is(stranger), path: "/dev/zero", err: policy.ErrNotRegular},
		"link to a device":                {caller: is(stranger), path: link("to-zero", "/dev/zero"), err: policy.ErrNotRegular},
		"the helper's own program":        {caller: is(stranger), path: "/proc/self/exe", err: syscall.ELOOP},
		"a descriptor of the helper's":    {caller: is(stranger), path: "/proc/self/fd/3", err: syscall.ELOOP},
		"mode that there is none":         {caller: is(stranger), path: own, mode: "rwx", err: helper.ErrRefused},
		"no mode":                         {caller: is(stranger), path: own, mode: "-", err: helper.ErrRefused},
		"too long a path":                 {caller: is(stranger), path: long[:unix.PathMax], err: syscall.ENAMETOOLONG},
		"longest path":                    {caller: is(stranger), path: long[:unix.PathMax-1], err: syscall.ENAMETOOLONG},
		"longest path that grows in JSON": {caller: is(stranger), path: "/" + strings.Repeat("\x01", unix.PathMax-2), err: syscall.ENAMETOOLONG},
		"path with NUL":                   {caller: is(stranger), path: own + "\x00", err: helper.ErrRefused},
		"more groups than a process has":  {caller: is(nobody, make([]uint32, 3*helper.MaxGroups)...), path: all, content: "all"},
	} {
		t.Run(name, func(t *testing.T) {
			if test.mode == "" {
				test.mode = policy.ReadOnly
			}
			f, err := c.Open(asked(t), test.caller, test.path, test.mode)
			if test.err != nil {
				if f != nil || !errors.Is(err, test.err) {
					t.Fatalf("opened %v, %v; want %v", f, err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if got, err := io.ReadAll(f); err != nil || string(got) != test.content {
				t.Errorf("read %q, %v; want %q", got, err, test.content)
			}
			want := map[policy.Mode]int{policy.ReadOnly: unix.O_RDONLY, policy.ReadWrite: unix.O_RDWR}[test.mode]
			if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0); err != nil || flags&unix.O_ACCMODE != want || flags&unix.O_PATH != 0 {
				t.Errorf("access mode %#o, %v; want %#o", flags, err, want)
			}
		})
	}
	if _, err := c.Open(asked(t), is(stranger), "own", policy.ReadOnly); err == nil || !strings.Contains(err.Error(), "absolute") {
		t.Errorf("a relative path: %v", err)
	}
}

// Every use is one line: what, for whom, and what came of it.
func TestAudit(t *testing.T) {
	needRoot(t)
	own := write(t, filepath.Join(publicDir(t), "own"), "own", 0o600, stranger, stranger)
	r := serve(t, nil)
	f, err := r.Open(asked(t), policy.Caller{UID: stranger}, own, policy.ReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	r.Open(asked(t), policy.Caller{UID: 0}, "/etc/shadow\nlevel=INFO msg=forged", policy.ReadWrite)
	r.stop()
	lines := strings.Split(strings.TrimSpace(r.log.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d lines:\n%s", len(lines), r.log)
	}
	for i, want := range [][]string{
		{"msg=done", "audit=true", "verb=open", "uid=64199", "path=" + own, "mode=ro"},
		{`msg="not done"`, "audit=true", "uid=0", "mode=rw", `path="/etc/shadow\nlevel=INFO msg=forged"`, "no file is opened as root"},
	} {
		for _, w := range want {
			if !strings.Contains(lines[i], w) {
				t.Errorf("line %d lacks %s: %s", i, w, lines[i])
			}
		}
	}
}

// Nor does a log that is restricted to what matters more leave one out.
func TestAuditWhateverTheLevel(t *testing.T) {
	var out syncbuf.Buffer
	r := serve(t, func(s *helper.Server) {
		s.Log = slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelError}))
		s.ReserveCID = func(uint32) (*os.File, error) { return os.Open(os.DevNull) }
	})
	f, err := r.ReserveCID(asked(t), vsock.Addr{VM: "abc", CID: vsock.CIDFirst + 5})
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	r.Open(asked(t), policy.Caller{UID: 0}, "/etc/shadow", policy.ReadOnly)
	r.stop()
	for _, want := range []string{"msg=done audit=true verb=reserve-cid vm=abc cid=", `msg="not done" audit=true verb=open uid=0`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no line has %q:\n%s", want, out.String())
		}
	}
}
