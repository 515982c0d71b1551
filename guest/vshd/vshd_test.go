package vshd_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/auberge-vm/auberge/guest/vshd"
	"github.com/auberge-vm/auberge/protos/vshpb"
)

func TestExitCodes(t *testing.T) {
	addr := serve(t)
	for _, tc := range []struct {
		script string
		want   int
	}{
		{"exit 0", 0},
		{"exit 3", 3},
		{"exit 255", 255},
		{"kill -KILL $$", 128 + 9},
		{"kill -TERM $$", 128 + 15},
	} {
		if got := run(t, addr, plain(tc.script)).code; got != tc.want {
			t.Errorf("%q on pipes: code %d, want %d", tc.script, got, tc.want)
		}
		if got := run(t, addr, terminal(tc.script)).code; got != tc.want {
			t.Errorf("%q on a terminal: code %d, want %d", tc.script, got, tc.want)
		}
	}
}

func TestWhatCannotRun(t *testing.T) {
	addr := serve(t)
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, tc := range []struct {
		name string
		argv []string
		code int
		text string
	}{
		{"not in PATH", []string{"no-such-command"}, 127, "no-such-command: command not found"},
		{"no such file", []string{"/no/such/file"}, 127, "/no/such/file: no such file"},
		{"below a file", []string{"/etc/passwd/x"}, 127, "no such file"},
		{"no interpreter", []string{write("script", "#!/no/such/interpreter\n", 0o755)}, 127, "no such interpreter"},
		{"not executable", []string{write("data", "", 0o644)}, 126, "permission denied"},
		{"a directory", []string{dir}, 126, "is a directory"},
		{"an empty name", []string{""}, 127, "empty"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := open(t, addr, &vshpb.SetupConnectionRequest{Argv: tc.argv, Nopty: true}).ready()
			if res := c.wait(); res.code != tc.code || !strings.Contains(res.stderr, tc.text) {
				t.Errorf("code %d, stderr %q; want %d and %q", res.code, res.stderr, tc.code, tc.text)
			}
		})
	}
	bare := write("bare", "echo $0 $1", 0o755)
	res := run(t, addr, &vshpb.SetupConnectionRequest{Argv: []string{bare, "x"}, Nopty: true})
	if want := bare + " x\n"; res.stdout != want {
		t.Errorf("script without #!: stdout %q, want %q", res.stdout, want)
	}
}

func TestCommandForms(t *testing.T) {
	dir := etc(t, fmt.Sprintf("%s:x:%d:%d::/:/bin/sh\n", self(t), os.Getuid(), os.Getgid()), "")
	addr := serve(t, vshd.WithEtc(dir))
	c := open(t, addr, &vshpb.SetupConnectionRequest{Nopty: true}).ready()
	if res := c.send("echo $0; exit 7\n").wait(); res.stdout != "-sh\n" || res.code != 7 {
		t.Errorf("login shell: %+v", res)
	}
	res := run(t, addr, &vshpb.SetupConnectionRequest{Command: "echo $0 a; exit 2", Nopty: true})
	if res.stdout != "/bin/sh a\n" || res.code != 2 {
		t.Errorf("command line: %+v", res)
	}
	res = run(t, addr, &vshpb.SetupConnectionRequest{Command: "sh", Argv: []string{"other", "-c", "echo $0"}, Nopty: true})
	if res.stdout != "other\n" {
		t.Errorf("command with argv: %+v", res)
	}
}

func TestOutputAndErrorsStayApart(t *testing.T) {
	res := run(t, serve(t), plain("echo out; echo err >&2"))
	if want := (result{"out\n", "err\n", 0}); res != want {
		t.Errorf("got %+v, want %+v", res, want)
	}
}

func TestEndOfInput(t *testing.T) {
	addr := serve(t)
	t.Run("on pipes", func(t *testing.T) {
		if res := open(t, addr, plain("cat; echo end")).ready().send("hello").eof().wait(); res.stdout != "helloend\n" {
			t.Errorf("stdout %q", res.stdout)
		}
	})
	t.Run("without any input", func(t *testing.T) {
		if res := open(t, addr, plain("cat; echo end")).ready().eof().wait(); res.stdout != "end\n" {
			t.Errorf("stdout %q", res.stdout)
		}
	})
	t.Run("after its end it is dropped", func(t *testing.T) {
		if res := open(t, addr, plain("cat")).ready().send("a").eof().send("b").wait(); res.stdout != "a" {
			t.Errorf("stdout %q", res.stdout)
		}
	})
	for _, text := range []string{"", "line\n", "part of a line"} {
		t.Run(fmt.Sprintf("on a terminal after %q", text), func(t *testing.T) {
			c := open(t, addr, terminal("stty -echo; echo ready; cat; echo; echo end")).ready()
			c.expect("ready\r\n")
			if text != "" {
				c.send(text)
			}
			got := c.eof().wait().stdout
			if want := strings.ReplaceAll(text, "\n", "\r\n") + "\r\nend\r\n"; got != want {
				t.Errorf("stdout %q, want %q", got, want)
			}
		})
	}
}

func TestClientLearnsThatOutputEnded(t *testing.T) {
	c := open(t, serve(t), plain("exec >&-; read x; exit 0")).ready()
	m, err := c.next()
	if err != nil {
		t.Fatal(err)
	}
	if d := m.GetDataMessage(); d.GetStream() != vshpb.StdioStream_STDOUT_STREAM || len(d.GetData()) != 0 {
		t.Errorf("got %v, want the end of stdout", m)
	}
	c.eof().wait()
}

func TestEnvironment(t *testing.T) {
	name := self(t)
	dir := etc(t, fmt.Sprintf("%s:x:%d:%d::/tmp:/bin/sh\n", name, os.Getuid(), os.Getgid()), "")
	addr := serve(t, vshd.WithEtc(dir))
	env := func(asked map[string]string) map[string]string {
		t.Helper()
		got := map[string]string{}
		req := &vshpb.SetupConnectionRequest{Argv: []string{"/usr/bin/env"}, Env: asked, Nopty: true}
		for line := range strings.Lines(run(t, addr, req).stdout) {
			k, v, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
			got[k] = v
		}
		return got
	}
	got := env(nil)
	for k, want := range map[string]string{"TERM": "linux", "HOME": "/tmp", "SHELL": "/bin/sh", "USER": name, "LOGNAME": name} {
		if got[k] != want {
			t.Errorf("%s = %q, want %q", k, got[k], want)
		}
	}
	if !strings.Contains(got["PATH"], "/usr/bin") || len(got) != 6 {
		t.Errorf("environment %v", got)
	}
	got = env(map[string]string{"TERM": "xterm", "HOME": "/x", "SHELL": "/x", "USER": "x", "PATH": "/x:/bin", "MINE": "a b=c"})
	for k, want := range map[string]string{"TERM": "xterm", "HOME": "/tmp", "SHELL": "/bin/sh", "USER": name, "PATH": "/x:/bin", "MINE": "a b=c"} {
		if got[k] != want {
			t.Errorf("%s = %q, want %q", k, got[k], want)
		}
	}
	for _, bad := range []string{"", "A=B"} {
		req := plain("true")
		req.Env = map[string]string{bad: "x"}
		if why := open(t, addr, req).refused(); !strings.Contains(why, "environment variable") {
			t.Errorf("variable named %q: %q", bad, why)
		}
	}
}

func TestProgramIsFoundInTheSessionsPath(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mine"), []byte("#!/bin/sh\necho mine\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	addr := serve(t)
	for _, path := range []string{"/nowhere:" + dir, ":/nowhere", "."} {
		req := &vshpb.SetupConnectionRequest{Argv: []string{"mine"}, Env: map[string]string{"PATH": path}, Cwd: dir, Nopty: true}
		if res := run(t, addr, req); res.stdout != "mine\n" {
			t.Errorf("PATH=%s: %+v", path, res)
		}
	}
}

func TestWorkingDirectory(t *testing.T) {
	home := t.TempDir()
	sub := filepath.Join(home, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	name := self(t)
	passwd := func(home string) string {
		return etc(t, fmt.Sprintf("%s:x:%d:%d::%s:/bin/sh\n", name, os.Getuid(), os.Getgid(), home), "")
	}
	addr := serve(t, vshd.WithEtc(passwd(home)))
	other := open(t, addr, &vshpb.SetupConnectionRequest{Argv: []string{"cat"}, Cwd: sub, Nopty: true}).ready()
	for _, tc := range []struct {
		name string
		cwd  string
		pid  int32
		want string
	}{
		{"home by default", "", 0, home},
		{"as asked", "/usr", 0, "/usr"},
		{"relative to home", "sub", 0, sub},
		{"of another session", "", other.resp.GetPid(), sub},
	} {
		t.Run(tc.name, func(t *testing.T) {
			req := plain("pwd -P")
			req.Cwd, req.CwdPid = tc.cwd, tc.pid
			if res := run(t, addr, req); res.stdout != tc.want+"\n" {
				t.Errorf("pwd %q, want %q", res.stdout, tc.want)
			}
		})
	}
	t.Run("the root without a home", func(t *testing.T) {
		addr := serve(t, vshd.WithEtc(passwd("/no/such/home")))
		if res := run(t, addr, plain("pwd -P")); res.stdout != "/\n" {
			t.Errorf("pwd %q", res.stdout)
		}
	})
	gone := run(t, addr, plain("echo $$"))
	for _, tc := range []struct {
		name string
		cwd  string
		pid  int32
		want string
	}{
		{"missing", "/no/such/directory", 0, `no directory "/no/such/directory" in this VM`},
		{"a file", "/etc/passwd", 0, `"/etc/passwd" is not a directory`},
		{"below a file", "/etc/passwd/x", 0, "not a directory"},
		{"of a process that is gone", "", int32(atoi(t, gone.stdout)), "no process " + strings.TrimSpace(gone.stdout)},
		{"of a negative process", "", -1, "no process -1"},
		{"both", "/usr", other.resp.GetPid(), "both"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			req := plain("pwd -P")
			req.Cwd, req.CwdPid = tc.cwd, tc.pid
			if why := open(t, addr, req).refused(); !strings.Contains(why, tc.want) {
				t.Errorf("refused with %q, want %q", why, tc.want)
			}
		})
	}
}

func TestWorkingDirectoryOfAnothersProcess(t *testing.T) {
	needRoot(t)
	addr := serve(t)
	mine := open(t, addr, plain("exec cat")).ready()
	req := plain("pwd")
	req.User, req.CwdPid = "nobody", mine.resp.GetPid()
	want := fmt.Sprintf(`process %d does not belong to user "nobody"`, req.CwdPid)
	if why := open(t, addr, req).refused(); why != want {
		t.Errorf("refused with %q, want %q", why, want)
	}
}

func TestUsers(t *testing.T) {
	needRoot(t)
	const passwd = "root:x:0:0::/root:/bin/sh\n" +
		"broken:x:-1:0::/:/bin/sh\n" +
		"short:x:1\n" +
		"guest:x:4242:4343::/:\n"
	const group = "root:x:0:\nfirst:x:5001:guest\nsecond:x:5002:other,guest\nthird:x:5003:guests\nown:x:4343:guest\n"
	addr := serve(t, vshd.WithEtc(etc(t, passwd, group)))
	id := func(addr, user string) string {
		t.Helper()
		req := plain("echo $(id -u) $(id -g) $(id -G) $SHELL")
		req.Target, req.User = vshpb.Target, user
		return strings.TrimSpace(openAs(t, addr, req).ready().wait().stdout)
	}
	if got, want := id(addr, "guest"), "4242 4343 4343 5001 5002 /bin/sh"; got != want {
		t.Errorf("guest is %q, want %q", got, want)
	}
	if got, want := id(addr, ""), "0 0 0 /bin/sh"; got != want {
		t.Errorf("nobody in particular is %q, want root, %q", got, want)
	}
	chronos := serve(t, vshd.WithEtc(etc(t, passwd+"chronos:x:1000:1000::/:/bin/sh\n", "")))
	if got, want := id(chronos, ""), "1000 1000 1000 /bin/sh"; got != want {
		t.Errorf("nobody in particular is %q, want chronos, %q", got, want)
	}
	for _, user := range []string{"no-such-user", "broken", "short"} {
		req := plain("true")
		req.User = user
		if why, want := open(t, addr, req).refused(), fmt.Sprintf("no user %q in this VM", user); why != want {
			t.Errorf("refused with %q, want %q", why, want)
		}
	}
}

func TestTerminalBelongsToTheUser(t *testing.T) {
	needRoot(t)
	req := terminal(`stat -c %U "$(tty)"; echo again >/dev/stderr; test "$(tput cols)" && : </dev/tty && echo controlling`)
	req.User = "nobody"
	res := run(t, serve(t), req)
	if want := "nobody\r\nagain\r\ncontrolling\r\n"; res.stdout != want {
		t.Errorf("got %q, want %q", res.stdout, want)
	}
}

func TestOneSessionPerTerminalAndPipe(t *testing.T) {
	addr := serve(t)
	const ids = `read -r _ _ _ _ pgrp session tty _ </proc/$$/stat; echo $$ $pgrp $session $tty`
	for _, req := range []*vshpb.SetupConnectionRequest{plain(ids), terminal(ids)} {
		c := open(t, addr, req).ready()
		f := strings.Fields(c.wait().stdout)
		pid := strconv.Itoa(int(c.resp.GetPid()))
		if len(f) != 4 || f[0] != pid || f[1] != pid || f[2] != pid || (f[3] == "0") != req.Nopty {
			t.Errorf("pid, group, session, terminal = %v; want %s as all three", f, pid)
		}
	}
}

func TestWindowSize(t *testing.T) {
	addr := serve(t)
	if res := run(t, addr, terminal("stty size")); res.stdout != "33 99\r\n" {
		t.Errorf("stty size: %q", res.stdout)
	}
	c := open(t, addr, terminal(`trap 'stty size; kill $!; exit 5' WINCH; sleep 300 & echo ready; wait`)).ready()
	c.expect("ready")
	c.resize(-1, 10).resize(0, 0).resize(10, 1<<20) // none of which a terminal can have
	if res := c.resize(50, 132).wait(); !strings.Contains(res.stdout, "50 132\r\n") || res.code != 5 {
		t.Errorf("after the resize: %+v", res)
	}
	if res := open(t, addr, plain("cat")).ready().resize(1, 1).eof().wait(); res.code != 0 {
		t.Errorf("resize without a terminal: %+v", res)
	}
}

func TestSignals(t *testing.T) {
	addr := serve(t)
	for _, sig := range []vshpb.Signal{vshpb.Signal_SIGNAL_HUP, vshpb.Signal_SIGNAL_INT, vshpb.Signal_SIGNAL_QUIT, vshpb.Signal_SIGNAL_TERM} {
		want := 128 + int(sig)
		c := open(t, addr, plain("ulimit -c 0; exec sleep 300")).ready()
		if got := c.signal(sig).wait().code; got != want {
			t.Errorf("%v on pipes: code %d, want %d", sig, got, want)
		}
		c = open(t, addr, terminal("ulimit -c 0; exec sleep 300")).ready()
		if got := c.signal(sig).wait().code; got != want {
			t.Errorf("%v on a terminal: code %d, want %d", sig, got, want)
		}
	}
	t.Run("reach the whole group", func(t *testing.T) {
		c := open(t, addr, plain(`trap 'wait; exit 4' TERM; sh -c 'echo $$; exec sleep 300' & wait`)).ready()
		child := watchPid(t, atoi(t, c.expect("\n")))
		if got := c.signal(vshpb.Signal_SIGNAL_TERM).wait().code; got != 4 {
			t.Errorf("code %d", got)
		}
		child.gone()
	})
	t.Run("reach the foreground of a terminal", func(t *testing.T) {
		c := open(t, addr, terminal(`set -m; sh -c 'echo ready; exec sleep 300'; echo code $?; exit 6`)).ready()
		c.expect("ready")
		if res := c.signal(vshpb.Signal_SIGNAL_TERM).wait(); !strings.Contains(res.stdout, "code 143") || res.code != 6 {
			t.Errorf("got %+v", res)
		}
	})
	t.Run("of other numbers are ignored", func(t *testing.T) {
		c := open(t, addr, plain("cat")).ready()
		if res := c.signal(vshpb.Signal(9)).signal(0).signal(-1).send("x").eof().wait(); res.stdout != "x" || res.code != 0 {
			t.Errorf("got %+v", res)
		}
	})
	t.Run("a ^C at the terminal is a byte", func(t *testing.T) {
		c := open(t, addr, terminal("echo ready; exec sleep 300")).ready()
		c.expect("ready")
		if got := c.send("\x03").wait().code; got != 130 {
			t.Errorf("code %d", got)
		}
	})
}

func TestSignalOvertakesUnreadInput(t *testing.T) {
	c := open(t, serve(t), plain("exec sleep 300")).ready()
	c.send(strings.Repeat("x", 1<<20))
	if got := c.signal(vshpb.Signal_SIGNAL_TERM).wait().code; got != 143 {
		t.Errorf("code %d, want 143", got)
	}
}

// pattern is data in which a lost or doubled piece shows.
func pattern(n int) []byte {
	b := make([]byte, n)
	src := rand.NewChaCha8([32]byte{1})
	src.Read(b)
	return b
}

func TestBulkDataBothWays(t *testing.T) {
	data := pattern(64 << 20)
	c := open(t, serve(t), plain("exec cat")).ready()
	sent := make(chan error, 1)
	go func() {
		for chunk := range slices.Chunk(data, vshpb.BatchData) {
			if err := c.w.WriteData(vshpb.StdioStream_STDIN_STREAM, chunk); err != nil {
				sent <- err
				return
			}
		}
		sent <- c.w.WriteData(vshpb.StdioStream_STDIN_STREAM, nil)
	}()
	sum, n := sha256.New(), 0
	for {
		payload, err := c.r.Next()
		if err != nil {
			t.Fatal(err)
		}
		_, chunk, ok := vshpb.ParseData(payload)
		if !ok {
			break
		}
		sum.Write(chunk)
		n += len(chunk)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if want := sha256.Sum256(data); n != len(data) || !bytes.Equal(sum.Sum(nil), want[:]) {
		t.Errorf("%d bytes came back of %d, or not the same", n, len(data))
	}
}

// A client that reads slowly holds the process back: what is under way never
// exceeds what pipes and sockets hold.
func TestSlowReaderHoldsTheProcessBack(t *testing.T) {
	const bound = 2 << 20
	c := open(t, serve(t), plain("exec cat /dev/zero")).ready()
	var read uint64
	for range 5000 {
		payload, err := c.r.Next()
		if err != nil {
			t.Fatal(err)
		}
		_, data, _ := vshpb.ParseData(payload)
		read += uint64(len(data))
		if made := written(t, int(c.resp.GetPid())); made > read+bound {
			t.Fatalf("the process has written %d bytes when %d were read", made, read)
		}
	}
}

func written(t *testing.T, pid int) uint64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if n, ok := strings.CutPrefix(line, "wchar: "); ok {
			return uint64(atoi(t, n))
		}
	}
	t.Fatalf("no wchar in %q", text)
	return 0
}

func TestNoByteIsLostAtExit(t *testing.T) {
	t.Run("as it is", func(t *testing.T) { checkNoByteIsLost(t, serve(t)) })
	// As if the machine were so busy that every wait is over before it began.
	t.Run("without patience", func(t *testing.T) { checkNoByteIsLost(t, serve(t, vshd.WithPatience(1))) })
}

func checkNoByteIsLost(t *testing.T, addr string) {
	var want, tty strings.Builder
	for i := range 9000 {
		fmt.Fprintf(&want, "%d\n", i+1)
		fmt.Fprintf(&tty, "%d\r\n", i+1)
	}
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() {
			for range 25 {
				res := run(t, addr, plain("seq 9000; seq 9000 >&2"))
				if res.stdout != want.String() || res.stderr != want.String() {
					t.Errorf("on pipes: %d and %d bytes, want %d of each", len(res.stdout), len(res.stderr), want.Len())
				}
				res = run(t, addr, terminal("seq 9000"))
				if res.stdout != tty.String() {
					t.Errorf("on a terminal: %d bytes, want %d", len(res.stdout), tty.Len())
				}
			}
		})
	}
	workers.Wait()
}

// Nothing but the process holds the terminal, so its end is the end.
func TestTerminalSessionEndsWithoutWaiting(t *testing.T) {
	addr := serve(t, vshd.WithPatience(time.Hour))
	if res := run(t, addr, terminal("echo x")); res.stdout != "x\r\n" {
		t.Errorf("got %+v", res)
	}
}

// The process is gone long before a slow client has taken its output.
func TestOutputOutlivesTheProcess(t *testing.T) {
	addr := serve(t)
	c := open(t, addr, plain("read go; head -c 60000 /dev/zero; echo end >&2")).ready()
	main := watchPid(t, int(c.resp.GetPid()))
	c.send("go\n")
	main.gone()
	if res := c.wait(); len(res.stdout) != 60000 || res.stderr != "end\n" {
		t.Errorf("%d bytes and %q", len(res.stdout), res.stderr)
	}
}

func TestBackgroundProcessDoesNotHoldTheSession(t *testing.T) {
	addr := serve(t)
	for _, tc := range []struct {
		name string
		req  *vshpb.SetupConnectionRequest
	}{
		{"silent on pipes", plain("sleep 300 & echo $!; exit 3")},
		{"silent on a terminal", terminal("trap '' HUP; sleep 300 & echo $!; exit 3")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			res := run(t, addr, tc.req)
			if res.code != 3 {
				t.Errorf("code %d, want 3", res.code)
			}
			sleeper := watchPid(t, atoi(t, res.stdout))
			if !sleeper.alive() {
				t.Error("what was left in the background is gone")
			}
			sleeper.kill()
			sleeper.gone()
		})
	}
	t.Run("one that never stops writing", func(t *testing.T) {
		res := run(t, addr, plain("yes & exit 3"))
		if res.code != 3 {
			t.Errorf("code %d, want 3", res.code)
		}
	})
	t.Run("one that writes now and then", func(t *testing.T) {
		res := run(t, addr, plain("(while sleep 0.05; do echo x; done) & exit 3"))
		if res.code != 3 {
			t.Errorf("code %d, want 3", res.code)
		}
	})
	t.Run("one that finishes a little later is heard", func(t *testing.T) {
		addr := serve(t, vshd.WithPatience(time.Hour))
		res := run(t, addr, plain("(until grep -q 'State:.Z' /proc/$$/status; do :; done; echo late) & exit 3"))
		if res.code != 3 || !strings.Contains(res.stdout, "late") {
			t.Errorf("got %+v", res)
		}
	})
}

func TestVanishedClientTakesItsProcessesAlong(t *testing.T) {
	killing := serve(t, vshd.WithKillGrace(50*time.Millisecond))
	addr := serve(t, vshd.WithKillGrace(time.Hour)) // where SIGHUP must do
	// A child tells its pid itself where signals are trapped: until it has run
	// its program it has its parent's traps, and loses the signal.
	stubborn := `trap '' HUP TERM; sh -c 'while :; do sleep 300; done' & echo $!; while :; do wait; done`
	for _, tc := range []struct {
		name string
		addr string
		req  *vshpb.SetupConnectionRequest
	}{
		{"on pipes", addr, plain("sleep 300 & echo $!; wait")},
		{"on a terminal", addr, terminal("sleep 300 & echo $!; wait")},
		{"stopped", addr, plain("trap exit HUP; sh -c 'echo $$; exec sleep 300' & kill -STOP $$; wait")},
		{"deaf to SIGHUP on pipes", killing, plain(stubborn)},
		{"deaf to SIGHUP on a terminal", killing, terminal(stubborn)},
		{"in job control on a terminal", killing, terminal("set -m; " + stubborn)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := open(t, tc.addr, tc.req).ready()
			main := watchPid(t, int(c.resp.GetPid()))
			child := watchPid(t, atoi(t, c.expect("\n")))
			c.conn.Close()
			main.gone()
			child.gone()
		})
	}
	t.Run("while they write", func(t *testing.T) {
		c := open(t, addr, plain("exec yes")).ready()
		main := watchPid(t, int(c.resp.GetPid()))
		c.expect("y\n")
		c.conn.Close()
		main.gone()
	})
	t.Run("while what they left in the background is waited for", func(t *testing.T) {
		addr := serve(t, vshd.WithPatience(time.Hour))
		c := open(t, addr, plain("read go; sh -c 'echo $$; exec sleep 300' & exit 0")).ready()
		main := watchPid(t, int(c.resp.GetPid()))
		child := watchPid(t, atoi(t, c.send("go\n").expect("\n")))
		main.gone()
		c.conn.Close()
		child.gone()
	})
	t.Run("but a process in a session of its own stays", func(t *testing.T) {
		c := open(t, addr, plain("setsid sh -c 'echo $$; exec sleep 300 >/dev/null 2>&1' & wait")).ready()
		main := watchPid(t, int(c.resp.GetPid()))
		daemon := watchPid(t, atoi(t, c.expect("\n")))
		c.conn.Close()
		main.gone()
		if !daemon.alive() {
			t.Error("it is gone")
		}
		daemon.kill()
	})
}

func TestVanishedClientIsNoticedBehindUnreadInput(t *testing.T) {
	const limit = 16 << 10
	c := open(t, serve(t, vshd.WithInputLimit(limit)), plain("exec sleep 300")).ready()
	main := watchPid(t, int(c.resp.GetPid()))
	// More than the queue and the pipe hold, so that some stays on the stream.
	c.send(strings.Repeat("x", 4*limit+64<<10))
	c.conn.Close()
	main.gone()
}

func TestFullInputQueueHoldsTheClientBack(t *testing.T) {
	const limit = 16 << 10
	data := pattern(8 << 20)
	c := open(t, serve(t, vshd.WithInputLimit(limit)), plain("read go; exec sha256sum")).ready()
	sent := make(chan error, 1)
	go func() {
		_, err := c.conn.Write(vshpb.AppendData(vshpb.AppendData(nil, vshpb.StdioStream_STDIN_STREAM,
			append([]byte("go\n"), data...)), vshpb.StdioStream_STDIN_STREAM, nil))
		sent <- err
	}()
	if got, want := c.wait().stdout, fmt.Sprintf("%x  -\n", sha256.Sum256(data)); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

func TestProcessThatStopsReading(t *testing.T) {
	c := open(t, serve(t), plain("exec <&-; echo closed; read x </dev/null; sleep 0; exit 9")).ready()
	c.expect("closed")
	for range 100 {
		if c.w.WriteData(vshpb.StdioStream_STDIN_STREAM, make([]byte, vshpb.BatchData)) != nil {
			break // the server has closed the stream already
		}
	}
	if got := c.wait().code; got != 9 {
		t.Errorf("code %d", got)
	}
}

func TestSetupIsRefused(t *testing.T) {
	addr := serve(t)
	for _, tc := range []struct {
		name string
		req  *vshpb.SetupConnectionRequest
		want string
	}{
		{"a container", &vshpb.SetupConnectionRequest{Target: "penguin"}, `no way into container "penguin"`},
		{"an unknown user", &vshpb.SetupConnectionRequest{User: "no-such-user"}, `no user "no-such-user" in this VM`},
		{"a NUL byte", &vshpb.SetupConnectionRequest{Argv: []string{"a\x00b"}}, "NUL"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := open(t, addr, tc.req)
			if why := c.refused(); !strings.Contains(why, tc.want) {
				t.Errorf("refused with %q, want %q", why, tc.want)
			}
		})
	}
	for _, tc := range []struct {
		name   string
		stream []byte
		want   string
	}{
		{"an oversized message", binary.LittleEndian.AppendUint32(nil, vshpb.MaxMessage+1), "too long"},
		{"garbage", []byte{3, 0, 0, 0, 0xff, 0xff, 0xff}, "read the setup request"},
		{"text that is not UTF-8", []byte{3, 0, 0, 0, 0x0a, 1, 0xff}, "read the setup request"},
		{"no target", []byte{0, 0, 0, 0}, "no target"},
		{"another protocol", []byte("GET / HTTP/1.1\r\n\r\n"), "too long"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := dial(t, addr)
			if _, err := c.conn.Write(tc.stream); err != nil {
				t.Fatal(err)
			}
			if err := c.r.Read(&c.resp); err != nil {
				t.Fatal(err)
			}
			if why := c.refused(); !strings.Contains(why, tc.want) {
				t.Errorf("refused with %q, want %q", why, tc.want)
			}
			c.conn.(*net.UnixConn).CloseWrite()
			c.closed()
		})
	}
}

func TestSilentClientIsDropped(t *testing.T) {
	c := dial(t, serve(t, vshd.WithSetupTimeout(10*time.Millisecond)))
	if err := c.r.Read(&c.resp); err != nil {
		t.Fatal(err)
	}
	if why := c.refused(); !strings.Contains(why, "timeout") {
		t.Errorf("refused with %q", why)
	}
	c.closed()
}

func TestBrokenMessagesEndTheSession(t *testing.T) {
	addr := serve(t)
	for _, tc := range []struct {
		name   string
		stream []byte
		want   string
	}{
		{"oversized", []byte{0xff, 0xff, 0xff, 0xff}, "too long"},
		{"garbage", []byte{1, 0, 0, 0, 0xff}, "no message"},
		{"data of another stream", vshpb.AppendData(nil, vshpb.StdioStream_STDOUT_STREAM, []byte("x")), "STDOUT_STREAM"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := open(t, addr, plain("exec sleep 300")).ready()
			main := watchPid(t, int(c.resp.GetPid()))
			if _, err := c.conn.Write(tc.stream); err != nil {
				t.Fatal(err)
			}
			if why := c.failed(); !strings.Contains(why, tc.want) {
				t.Errorf("failed with %q, want %q", why, tc.want)
			}
			main.gone()
		})
	}
}

func TestMessagesOfTheFutureAreIgnored(t *testing.T) {
	c := open(t, serve(t), plain("cat")).ready()
	for _, payload := range [][]byte{{}, {0x7a, 1, 'x'}} { // nothing; field 15
		if _, err := c.conn.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(payload))), payload...)); err != nil {
			t.Fatal(err)
		}
	}
	if res := c.send("x").eof().wait(); res.stdout != "x" {
		t.Errorf("got %+v", res)
	}
}

func TestClientMayEndTheSessionByStatus(t *testing.T) {
	c := open(t, serve(t), plain("exec sleep 300")).ready()
	main := watchPid(t, int(c.resp.GetPid()))
	st := &vshpb.ConnectionStatusMessage{Status: vshpb.ConnectionStatus_EXITED}
	if err := c.w.Write(&vshpb.GuestMessage{Msg: &vshpb.GuestMessage_StatusMessage{StatusMessage: st}}); err != nil {
		t.Fatal(err)
	}
	main.gone()
}

func TestSessionsAreLimited(t *testing.T) {
	addr := serve(t, vshd.WithMaxSessions(1))
	first := open(t, addr, plain("cat")).ready()
	second := dial(t, addr)
	if err := second.r.Read(&second.resp); err != nil {
		t.Fatal(err)
	}
	if why := second.refused(); !strings.Contains(why, "1 sessions already") {
		t.Errorf("refused with %q", why)
	}
	first.eof().wait()
	for { // the server lets go of the first session at its own pace
		third := dial(t, addr)
		req := plain("echo again")
		req.Target, req.User = vshpb.Target, self(t)
		third.w.Write(req) // which a server that refuses may not take
		if err := third.r.Read(&third.resp); err != nil {
			t.Fatal(err)
		}
		if third.resp.GetStatus() == vshpb.ConnectionStatus_FAILED {
			third.conn.Close()
			continue
		}
		if res := third.wait(); res.stdout != "again\n" {
			t.Errorf("after the first session: %+v", res)
		}
		return
	}
}

func TestStoppingTheServerEndsItsSessions(t *testing.T) {
	l := listen(t)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- quiet().Serve(ctx, l) }()
	silent := dial(t, l.Addr().String())
	pipes := open(t, l.Addr().String(), plain("exec sleep 300")).ready()
	tty := open(t, l.Addr().String(), terminal("exec sleep 300")).ready()
	over := open(t, l.Addr().String(), plain("exit 0")).ready() // and the client lingers
	watches := []watch{watchPid(t, int(pipes.resp.GetPid())), watchPid(t, int(tty.resp.GetPid()))}
	stop()
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
	for _, w := range watches {
		if w.alive() {
			t.Error("a process is left")
		}
	}
	for _, c := range []*client{pipes, tty} {
		if why := c.failed(); !strings.Contains(why, "stopping") {
			t.Errorf("failed with %q", why)
		}
	}
	silent.closed()
	over.conn.Close()
}

func TestListenerFailure(t *testing.T) {
	l := listen(t)
	l.Close()
	if err := quiet().Serve(t.Context(), l); err == nil {
		t.Error("Serve on a closed listener returned nil")
	}
}

func TestAcceptSurvivesLackOfDescriptors(t *testing.T) {
	l := listen(t)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- quiet().Serve(ctx, &flaky{Listener: l}) }()
	if res := run(t, l.Addr().String(), plain("echo ok")); res.stdout != "ok\n" {
		t.Errorf("got %+v", res)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// flaky fails its first Accept, a fault that cannot be made for real without
// starving the test itself.
type flaky struct {
	net.Listener
	failed bool
}

func (f *flaky) Accept() (net.Conn, error) {
	if !f.failed {
		f.failed = true
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return f.Listener.Accept()
}

func TestSessionsLeaveNoDescriptors(t *testing.T) {
	addr := serve(t)
	session := func() {
		run(t, addr, plain("true"))
		run(t, addr, terminal("true"))
		run(t, addr, &vshpb.SetupConnectionRequest{Argv: []string{"/no/such"}})
		c := open(t, addr, plain("exec sleep 300")).ready()
		main := watchPid(t, int(c.resp.GetPid()))
		c.conn.Close()
		main.gone()
	}
	count := func() int {
		t.Helper()
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, fd := range fds {
			link, _ := os.Readlink("/proc/self/fd/" + fd.Name())
			if strings.HasPrefix(link, "pipe:") || strings.Contains(link, "/pt") || strings.Contains(link, "[eventpoll]") {
				n++
			}
		}
		return n
	}
	session()
	before := count()
	for range 10 {
		session()
	}
	// The last sessions may still be closing theirs; ten times as many is a leak.
	if after := count(); after > before+8 {
		t.Errorf("%d pipes and terminals before ten sessions, %d after", before, after)
	}
}

func TestManySessionsAtOnce(t *testing.T) {
	addr := serve(t)
	var all sync.WaitGroup
	for i := range 64 {
		all.Go(func() {
			text := strconv.Itoa(i)
			if res := open(t, addr, plain("cat")).ready().send(text).eof().wait(); res.stdout != text {
				t.Errorf("session %d: %+v", i, res)
			}
		})
	}
	all.Wait()
}

// serveOwnUser shows that a server without root's rights runs sessions as its
// own user and refuses others.
func serveOwnUser(t *testing.T) {
	addr := serve(t)
	if res := run(t, addr, plain("id -un")); strings.TrimSpace(res.stdout) != self(t) {
		t.Errorf("got %+v", res)
	}
	req := plain("id -u")
	req.User = "root"
	want := fmt.Sprintf(`vshd runs as uid %d and cannot run a session as user "root"`, os.Geteuid())
	if why := open(t, addr, req).refused(); why != want {
		t.Errorf("refused with %q, want %q", why, want)
	}
}

// Tests once more, with a server that is nobody: run by root, this one starts
// itself and them again as that user.
func TestAsNobody(t *testing.T) {
	if os.Geteuid() != 0 {
		serveOwnUser(t)
		return
	}
	dir, err := os.MkdirTemp("", "vshd-nobody-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "test")
	if err := errors.Join(os.WriteFile(bin, exe, 0o755), os.Chmod(dir, 0o777)); err != nil {
		t.Fatal(err)
	}
	const tests = "^(TestAsNobody|TestExitCodes|TestEndOfInput|TestWorkingDirectory|" +
		"TestWindowSize|TestSignals|TestVanishedClientTakesItsProcessesAlong)$"
	cmd := exec.CommandContext(t.Context(), bin, "-test.v", "-test.run", tests)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "TMPDIR="+dir, "HOME="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestAsNobody") {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
}
