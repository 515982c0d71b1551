package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/test/testbed"
)

// counting is what `seq` prints without an end: no two pages of it are alike.
type counting struct {
	n    uint64
	rest []byte
}

func (c *counting) Read(p []byte) (int, error) {
	for len(c.rest) < len(p) {
		c.n++
		c.rest = append(strconv.AppendUint(c.rest, c.n, 10), '\n')
	}
	n := copy(p, c.rest)
	c.rest = append(c.rest[:0], c.rest[n:]...)
	return n, nil
}

// sumOf is the sum of the next n bytes.
func sumOf(t *testing.T, r io.Reader, n int64) string {
	t.Helper()
	h := sha256.New()
	if _, err := io.CopyN(h, r, n); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// What goes through a shell's streams arrives, all of it and as it was.
func TestVshStreams(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	alice.start(&pb.StartVmRequest{Name: "x"})
	bulk := int64(number(t, "AUBERGE_BULK_MIB", 64)) << 20
	count := fmt.Sprintf("seq 1000000000 | head -c %d", bulk)

	t.Run("to the guest", func(t *testing.T) {
		seed := [32]byte{1, 2, 3}
		cmd := b.Command(testbed.Alice, "vsh", "x", "--", "sha256sum")
		cmd.Stdin = io.LimitReader(rand.NewChaCha8(seed), bulk)
		began := time.Now()
		out, errs, err := output(cmd)
		want := sumOf(t, rand.NewChaCha8(seed), bulk)
		if err != nil || !strings.HasPrefix(out, want) {
			t.Errorf("%v: %q %q, want %s", err, out, errs, want)
		}
		t.Logf("%d MiB in %v", bulk>>20, time.Since(began))
	})
	t.Run("from the guest", func(t *testing.T) {
		cmd := b.Command(testbed.Alice, "vsh", "x", "--", "sh", "-c", count)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		got := sumOf(t, out, bulk)
		more, _ := io.ReadAll(out)
		if err := cmd.Wait(); err != nil || len(more) > 0 || got != sumOf(t, &counting{}, bulk) {
			t.Errorf("%v: %d bytes too many, or the sum %s is wrong", err, len(more), got)
		}
		t.Logf("%d MiB in %v", bulk>>20, time.Since(began))
	})
	t.Run("slow reader", func(t *testing.T) { slowReader(t, b, alice) })
	t.Run("pager", func(t *testing.T) { readerLeaves(t, b, alice) })
	t.Run("exit", func(t *testing.T) { lastBytes(t, b) })
	t.Run("many commands", func(t *testing.T) { manyCommands(t, b, alice) })
	alice.stop("x")
	b.gone()
}

// slowReader: who does not read holds up its own command and nobody's else;
// what it has not read yet is not lost.
func slowReader(t *testing.T, b *bed, alice *client) {
	const size = 8 << 20
	cmd := b.Command(testbed.Alice, "vsh", "x", "--", "sh", "-c", fmt.Sprintf("seq 1000000000 | head -c %d; echo done >/tmp/slow", size))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	first := make([]byte, 1000)
	if _, err := io.ReadFull(out, first); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if got := alice.vsh("x", "echo", "here"); got != "here" {
			t.Errorf("meanwhile another shell says %q", got)
		}
	}
	if _, _, err := alice.run("vsh", "x", "--", "test", "-e", "/tmp/slow"); err == nil {
		t.Error("the command has written 8 MiB that nobody has read")
	}
	got := sumOf(t, io.MultiReader(bytes.NewReader(first), out), size)
	more, _ := io.ReadAll(out)
	if err := cmd.Wait(); err != nil || len(more) > 0 || got != sumOf(t, &counting{}, size) {
		t.Errorf("%v: %d bytes too many, or the sum is wrong", err, len(more))
	}
}

// readerLeaves: a command of which nobody wants to read more ends, also when it
// waits to write.
func readerLeaves(t *testing.T, b *bed, alice *client) {
	cmd := b.Command(testbed.Alice, "vsh", "x", "--", "yes", "a line of many")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	before := ""
	eventually(t, "the command waits", func() (string, bool) {
		now := alice.rootShell("x", "grep wchar /proc/$(pidof yes)/io")
		stands := now == before
		before = now
		return now, stands
	})
	out.Close()
	if code := exitCode(cmd.Wait()); code != 141 {
		t.Errorf("code %d", code)
	}
	eventually(t, "the command has ended", func() (string, bool) {
		left := alice.rootShell("x", "pidof yes || :")
		return left, left == ""
	})
}

// lastBytes: what a command writes just before it ends arrives before its code.
func lastBytes(t *testing.T, b *bed) {
	want := make([]byte, 200_000)
	io.ReadFull(&counting{}, want)
	for i := range 20 {
		cmd := b.Command(testbed.Alice, "vsh", "x", "--", "sh", "-c",
			fmt.Sprintf("seq 1000000 | head -c %d; seq 1000000 | head -c %d >&2; exit %d", len(want), len(want), i))
		out, errs, err := output(cmd)
		if code := exitCode(err); code != i || out != string(want) || errs != string(want) {
			t.Fatalf("round %d: code %d, %d and %d bytes of %d", i, code, len(out), len(errs), len(want))
		}
	}
}

// manyCommands: short commands by the hundred, four at a time, each with its
// own output and code, leave nothing in the guest.
func manyCommands(t *testing.T, b *bed, alice *client) {
	const atOnce = 4
	n := number(t, "AUBERGE_COMMANDS", 200)
	// The kernel's own threads come and go.
	left := func() string {
		return alice.rootShell("x", "ls /proc/$(pidof vshd)/fd | wc -l; set -- $(grep -lsz . /proc/[0-9]*/cmdline); echo $#")
	}
	before := left()
	began := time.Now()
	var wg sync.WaitGroup
	for worker := range atOnce {
		wg.Go(func() {
			for i := worker; i < n; i += atOnce {
				cmd := b.Command(testbed.Alice, "vsh", "x", "--", "sh", "-c", fmt.Sprintf("echo %d; echo %d >&2; exit %d", i, -i, i%100))
				out, errs, err := output(cmd)
				if code := exitCode(err); code != i%100 || out != fmt.Sprintln(i) || errs != fmt.Sprintln(-i) {
					t.Errorf("command %d: code %d, %q, %q", i, code, out, errs)
					return
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d commands in %v", n, time.Since(began))
	// A session's last process may be a moment behind its client.
	var after string
	b.await("the guest is as it was", func() bool { after = left(); return after == before })
}

// An open shell does not notice that the service dies and comes back; it goes
// on while there is none.
func TestShellOutlivesConcierge(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	alice.start(&pb.StartVmRequest{Name: "x"})
	shell := alice.shell("x")
	shell.say("colour=red")
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		b.concierge.Stop(sig)
		if got := shell.say("echo $colour"); got != "red" {
			t.Errorf("without a service the shell says %q", got)
		}
		b.startConcierge()
		if got := shell.say("echo $colour"); got != "red" {
			t.Errorf("with the next service the shell says %q", got)
		}
		if got := alice.vsh("x", "echo", "new"); got != "new" {
			t.Errorf("a new shell says %q", got)
		}
	}
	shell.end()
	alice.stop("x")
	b.gone()
}
