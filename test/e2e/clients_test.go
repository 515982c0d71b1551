package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/test/testbed"
)

func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}

// A person's way through vmc: every command, as text and as JSON, with its
// exit codes.
func TestVmc(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	vmc := func(code int, args ...string) (string, string) {
		t.Helper()
		out, errs, err := alice.run("vmc", args...)
		if got := exitCode(err); got != code {
			t.Fatalf("vmc %s: exit code %d, want %d: %s%s", strings.Join(args, " "), got, code, out, errs)
		}
		return out, errs
	}
	alice.small("termina")

	vmc(2, "start")
	vmc(2, "start", "x", "--size", "much")
	vmc(2, "nonsense")
	vmc(2, "destroy", "termina") // nobody there to ask
	vmc(3, "info", "termina")
	vmc(3, "destroy", "--yes", "termina")
	vmc(4, "list", "--owner", "64102")
	vmc(5, "list", "--bus", "unix:path=/nonexistent")
	if _, errs := vmc(1, "start", "x", "--kernel", "/nonexistent"); !strings.Contains(errs, "/nonexistent") {
		t.Errorf("the reason does not name the kernel: %s", errs)
	}

	out, _ := vmc(0, "create", "termina", "--size", "1G")
	if !strings.HasSuffix(strings.TrimSpace(out), "dGVybWluYQ==.img") {
		t.Errorf("create: %q", out)
	}
	out, _ = vmc(0, "start", "termina")
	word := "running"
	if terminaStatus(t) != pb.VmStatus_VM_STATUS_RUNNING {
		word = "starting"
	}
	if !strings.HasPrefix(out, "termina is "+word+": address 100.115.") {
		t.Errorf("start: %q", out)
	}
	out, _ = vmc(0, "list")
	if !strings.Contains(out, "termina") || !strings.Contains(out, word) {
		t.Errorf("list: %q", out)
	}
	// --bus and --json before the verb, as scripts write them.
	out, _ = vmc(0, "--bus", b.Address, "--json", "info", "termina")
	var info struct {
		Info struct {
			Cid    string `json:"cid"`
			Status string `json:"status"`
		} `json:"vm_info"`
	}
	if err := json.Unmarshal([]byte(out), &info); err != nil || info.Info.Status != terminaStatus(t).String() {
		t.Errorf("info --json: %v: %s", err, out)
	}
	out, _ = vmc(0, "call", "ListVmDisks", `{"vm_name": "termina"}`)
	if !strings.Contains(out, "dGVybWluYQ==.img") {
		t.Errorf("call ListVmDisks: %s", out)
	}
	out, _ = vmc(0, "call", "ListVmDisks")
	if strings.Contains(out, ".img") || !strings.Contains(out, `"termina"`) {
		t.Errorf("the seed's ListVmDisks: %s", out)
	}
	out, _ = vmc(0, "call", "CreateDiskImage", `{"disk_path": "termina"}`)
	if !strings.Contains(out, "DISK_STATUS_EXISTS") {
		t.Errorf("call CreateDiskImage with disk_path: %s", out)
	}
	vmc(2, "call", "NoSuchMethod")
	vmc(2, "call", "GetVmInfo", `{"colour": "red"}`)
	vmc(2, "call", "GetVmInfo", `{`)
	vmc(0, "stop", "termina")
	vmc(0, "stop", "termina") // stopped already

	// start --shell runs a shell from standard input and ends with its code.
	cmd := b.Command(testbed.Alice, "vmc", "start", "termina", "--shell")
	cmd.Stdin = strings.NewReader("echo in-$(uname -s); exit 9\n")
	out, errs, err := output(cmd)
	if exitCode(err) != 9 || !strings.Contains(out, "in-Linux") {
		t.Errorf("start --shell: %v: %q %q", err, out, errs)
	}
	vmc(0, "destroy", "--yes", "termina")
	b.gone()
}

// Shells and commands in a live VM.
func TestVsh(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	alice.start(&pb.StartVmRequest{Name: "x"})
	vsh := func(stdin string, args ...string) (string, string, int) {
		t.Helper()
		cmd := b.Command(testbed.Alice, "vsh", args...)
		cmd.Stdin = strings.NewReader(stdin)
		out, errs, err := output(cmd)
		return out, errs, exitCode(err)
	}
	for what, test := range map[string]struct {
		stdin     string
		args      []string
		out, errs string
		code      int
	}{
		"exit code":   {args: []string{"x", "--", "sh", "-c", "exit 42"}, code: 42},
		"a signal":    {args: []string{"x", "--", "sh", "-c", "kill -9 $$"}, code: 137},
		"two streams": {args: []string{"x", "--", "sh", "-c", "echo out; echo err >&2"}, out: "out\n", errs: "err\n"},
		"stdin":       {stdin: "one\ntwo\n", args: []string{"x", "--", "wc", "-l"}, out: "2\n"},
		"environment": {args: []string{"x", "--", "COLOUR=red", "sh", "-c", "echo $COLOUR"}, out: "red\n"},
		"directory":   {args: []string{"--cwd", "/usr/bin", "x", "--", "pwd"}, out: "/usr/bin\n"},
		"the user":    {args: []string{"x", "--", "id", "-un"}, out: "chronos\n"},
		"root":        {args: []string{"--user", "root", "x", "--", "id", "-un"}, out: "root\n"},
		"bus first":   {args: []string{"--bus", b.Address, "x", "--", "echo", "hi"}, out: "hi\n"},
	} {
		out, errs, code := vsh(test.stdin, test.args...)
		if out != test.out || errs != test.errs || code != test.code {
			t.Errorf("%s: %q, %q, %d; want %q, %q, %d", what, out, errs, code, test.out, test.errs, test.code)
		}
	}
	if _, errs, code := vsh("", "--user", "nobody-known", "x", "--", "true"); code == 0 || !strings.Contains(errs, "nobody-known") {
		t.Errorf("an unknown user: %d, %q", code, errs)
	}
	if _, errs, code := vsh("", "unknown", "--", "true"); code != 123 || !strings.Contains(errs, "unknown") {
		t.Errorf("an unknown VM: %d, %q", code, errs)
	}
	cmd := b.Command(testbed.Bob, "vsh", "x", "--", "true")
	if _, errs, err := output(cmd); exitCode(err) != 123 {
		t.Errorf("bob got into alice's VM: %v %s", err, errs)
	}

	t.Run("bulk", func(t *testing.T) {
		// Each way through the real transport; the sum is made at both ends.
		data := bytes.Repeat([]byte("0123456789abcde\n"), 256<<10) // 4 MiB
		sum := sha256.Sum256(data)
		cmd := b.Command(testbed.Alice, "vsh", "x", "--", "sha256sum")
		cmd.Stdin = bytes.NewReader(data)
		out, errs, err := output(cmd)
		if err != nil || !strings.HasPrefix(out, hex.EncodeToString(sum[:])) {
			t.Errorf("to the guest: %v: %q %q", err, out, errs)
		}
		cmd = b.Command(testbed.Alice, "vsh", "x", "--", "sh", "-c", "yes 0123456789abcde | head -c "+strconv.Itoa(len(data)))
		out, errs, err = output(cmd)
		if got := sha256.Sum256([]byte(out)); err != nil || got != sum {
			t.Errorf("from the guest: %v: %d bytes %q", err, len(out), errs)
		}
	})
	t.Run("client killed", func(t *testing.T) {
		// Nobody else may hold the stream, or the guest never learns of it.
		cmd := b.Command(testbed.Alice, "vsh", "x", "--", "sh", "-c", "echo $$; exec sleep 100000")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		cmd.Process.Kill()
		cmd.Wait()
		deadline := time.Now().Add(patience)
		for {
			if _, _, code := vsh("", "x", "--", "test", "-d", "/proc/"+strings.TrimSpace(line)); code == 1 {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("process %s outlives its session", line)
			}
		}
	})
	t.Run("pty", func(t *testing.T) {
		cmd := b.Command(testbed.Alice, "vsh", "x", "--", "sh", "-c", "stty size; tty; echo done")
		tty, err := pty.StartWithAttrs(cmd, &pty.Winsize{Rows: 33, Cols: 77}, withTerminal(cmd))
		if err != nil {
			t.Fatal(err)
		}
		defer tty.Close()
		var out bytes.Buffer
		out.ReadFrom(tty) // ends with EIO when the other side closes
		if err := cmd.Wait(); err != nil || !strings.Contains(out.String(), "33 77") || !strings.Contains(out.String(), "/dev/pts/") {
			t.Errorf("on a terminal: %v: %q", err, out.String())
		}
	})
	alice.stop("x")
	b.gone()
}
