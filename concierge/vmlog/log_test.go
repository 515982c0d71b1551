package vmlog_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/concierge/vmlog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var quiet = slog.New(slog.DiscardHandler)

// A book is a log in a directory of its own.
type book struct {
	*vmlog.Log
	t     testing.TB
	store *vmlog.Store
	path  string
	next  int // number of the next line
}

func newBook(t testing.TB) *book {
	t.Helper()
	b := &book{t: t, store: vmlog.NewStore(), path: filepath.Join(t.TempDir(), "1000", "x.log")}
	b.Log = b.store.Open(b.path, quiet)
	t.Cleanup(func() { b.Close() })
	return b
}

func user(text string) vmlog.Record {
	return vmlog.Record{Source: vmlog.User, Severity: vmlog.Info, Time: time.Now(), Content: []byte(text)}
}

// fill writes numbered lines of a thousand bytes.
func (b *book) fill(n int) {
	b.t.Helper()
	for n > 0 {
		var batch []vmlog.Record
		for range min(n, 500) {
			batch = append(batch, user(fmt.Sprintf("%08d%s", b.next, strings.Repeat(".", 952))))
			b.next++
		}
		b.Append(b.t.Context(), batch...)
		n -= len(batch)
	}
}

// read returns the texts of the last lines, of all with n of zero.
func (b *book) read(n uint32) []string {
	b.t.Helper()
	r, err := b.Reader(b.t.Context(), n)
	if err != nil {
		b.t.Fatal(err)
	}
	defer r.Close()
	var out bytes.Buffer
	if err := r.Copy(b.t.Context(), &out, false); err != nil {
		b.t.Fatal(err)
	}
	return texts(b.t, out.String())
}

func texts(t testing.TB, all string) (found []string) {
	t.Helper()
	for l := range strings.Lines(all) {
		head, text, ok := strings.Cut(strings.TrimSuffix(l, "\n"), ": ")
		if !ok || len(strings.Fields(head)) != 3 || !strings.HasSuffix(l, "\n") {
			t.Fatalf("%q is no line", l)
		}
		found = append(found, text)
	}
	return found
}

// consecutive checks that numbered lines have no gap, and returns the first
// number and the last.
func consecutive(t testing.TB, lines []string) (first, last int) {
	t.Helper()
	for i, l := range lines {
		n := -1
		fmt.Sscanf(l[:min(len(l), 8)], "%d", &n)
		if i == 0 {
			first = n
		} else if n != last+1 {
			t.Fatalf("line %d follows line %d: %q", n, last, l)
		}
		last = n
	}
	return first, last
}

func TestNothingWritten(t *testing.T) {
	b := newBook(t)
	if _, err := b.Reader(t.Context(), 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Reader: %v", err)
	}
	if _, err := b.Tail(t.Context(), 1<<20, ""); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Tail: %v", err)
	}
	b.Append(t.Context())
	if _, err := os.Stat(b.path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing was written, and the file: %v", err)
	}
}

// However much is written, a log has its few files, and they hold the last
// lines without a gap.
func TestRotation(t *testing.T) {
	b := newBook(t)
	b.fill(36 << 10)
	entries, err := os.ReadDir(filepath.Dir(b.path))
	if err != nil {
		t.Fatal(err)
	}
	var total int64
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if fi.Size() > vmlog.MaxFile || fi.Mode() != 0o600 {
			t.Errorf("%s has %d bytes and mode %v", e.Name(), fi.Size(), fi.Mode())
		}
		total += fi.Size()
	}
	if len(entries) != vmlog.Files || total < (vmlog.Files-2)*vmlog.MaxFile {
		t.Errorf("%d files with %d bytes", len(entries), total)
	}
	lines := b.read(0)
	first, last := consecutive(t, lines)
	if last != b.next-1 || first == 0 || int64(len(lines))*1000 < total/2 {
		t.Errorf("lines %d to %d of %d are left", first, last, b.next)
	}
	// A later process goes on where this one ended.
	other := &book{Log: vmlog.NewStore().Open(b.path, quiet), t: t, path: b.path, next: b.next}
	other.fill(1)
	if _, last := consecutive(t, other.read(0)); last != b.next {
		t.Errorf("after a restart the last line is %d", last)
	}
}

func TestLastLines(t *testing.T) {
	b := newBook(t)
	b.fill(10 << 10) // three files
	for _, n := range []int{1, 2, 1000, 5000, 10<<10 - 1, 10 << 10, 20 << 10} {
		lines := b.read(uint32(n))
		if _, last := consecutive(t, lines); len(lines) != min(n, b.next) || last != b.next-1 {
			t.Errorf("asked for %d lines: %d until %d", n, len(lines), last)
		}
	}
}

func TestTail(t *testing.T) {
	b := newBook(t)
	b.fill(100)
	all, err := b.Tail(t.Context(), 1<<20, "ask")
	if first, last := consecutive(t, texts(t, all)); err != nil || first != 0 || last != 99 {
		t.Errorf("lines %d to %d, %v", first, last, err)
	}
	b.fill(9900)
	const limit = 5 << 20
	some, err := b.Tail(t.Context(), limit, "ask for the rest")
	if err != nil || len(some) > limit || len(some) < limit-8<<10 {
		t.Fatalf("%d bytes, %v", len(some), err)
	}
	lines := texts(t, some)
	first, last := consecutive(t, lines[1:])
	if last != b.next-1 {
		t.Errorf("the last line is %d", last)
	}
	want := fmt.Sprintf("the first %d of %d bytes are left out here; ask for the rest", first*1000, b.next*1000)
	if lines[0] != want {
		t.Errorf("it begins with %q, want %q", lines[0], want)
	}
}

// What has become of the files in the meantime breaks nothing.
func TestDamage(t *testing.T) {
	b := newBook(t)
	b.Append(t.Context(), user("one"))
	// A crash has left a piece of a line, and some rubbish.
	f, err := os.OpenFile(b.path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(f, "%s user info: piece\xff\xfe", time.Now().Format("2006"))
	f.Close()
	b.Append(t.Context(), user("two"))
	text, err := b.Tail(t.Context(), 1<<20, "")
	if err != nil || strings.ToValidUTF8(text, "!") != text || !strings.Contains(text, "piece?\n") || !strings.HasSuffix(text, ": two\n") {
		t.Errorf("%q, %v", text, err)
	}
	// The file and its directory are gone.
	if err := os.RemoveAll(filepath.Dir(b.path)); err != nil {
		t.Fatal(err)
	}
	b.Append(t.Context(), user("three"))
	if got := b.read(0); len(got) != 1 || got[0] != "three" {
		t.Errorf("after the removal: %q", got)
	}
	// Something else is in its place, and nothing is written to it.
	if err := os.Remove(b.path); err != nil {
		t.Fatal(err)
	}
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	for what, put := range map[string]func() error{
		"a directory": func() error { return os.Mkdir(b.path, 0o700) },
		"a FIFO":      func() error { return syscall.Mkfifo(b.path, 0o600) },
		"a link":      func() error { return os.Symlink(elsewhere, b.path) },
	} {
		if err := put(); err != nil {
			t.Fatal(err)
		}
		b.Append(t.Context(), user("lost"), user("lost"))
		if _, err := b.Reader(t.Context(), 0); err == nil {
			t.Errorf("%s was read", what)
		}
		if err := os.Remove(b.path); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(elsewhere); err == nil {
		t.Error("a link was followed")
	}
	b.Append(t.Context(), user("four"))
	b.Append(t.Context(), user("five"))
	got := b.read(0)
	if len(got) != 3 || !strings.HasPrefix(got[0], "6 records are lost") || got[1] != "four" || got[2] != "five" {
		t.Errorf("the loss was told as %q", got)
	}
}

// A file that can take a piece of what is written keeps none of it.
func TestFull(t *testing.T) {
	b := newBook(t)
	b.Append(t.Context(), user("one"))
	fi, err := os.Stat(b.path)
	if err != nil {
		t.Fatal(err)
	}
	signal.Ignore(syscall.SIGXFSZ)
	defer signal.Reset(syscall.SIGXFSZ)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: uint64(fi.Size()) + 20, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	b.Append(t.Context(), user("two"), user("three"))
	b.Append(t.Context(), user("four"))
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	if got := b.read(0); len(got) != 1 || got[0] != "one" {
		t.Errorf("while it is full: %q", got)
	}
	b.Append(t.Context(), user("five"))
	if got := b.read(0); len(got) != 3 || !strings.HasPrefix(got[1], "3 records are lost, they could not be written: ") || got[2] != "five" {
		t.Errorf("afterwards: %q", got)
	}
}

// What could not wait for a disk that hangs is counted too.
func TestDiskThatHangs(t *testing.T) {
	b := newBook(t)
	let := b.Hold()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	b.Append(ctx, user("one"), user("two"))
	b.Append(ctx, user("three"))
	let()
	b.Append(t.Context(), user("four"))
	b.Append(t.Context(), user("five"))
	if got := b.read(0); len(got) != 3 || !strings.HasPrefix(got[0], "3 records are lost, they could not be written: ") || got[1] != "four" || got[2] != "five" {
		t.Errorf("%q", got)
	}
}
