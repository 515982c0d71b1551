package vmlog_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A follower reads a log through a pipe, as clients do.
type follower struct {
	t      *testing.T
	lines  chan string // closed at the end
	ended  chan error
	cancel context.CancelFunc
}

func (b *book) follow(t *testing.T, n uint32) *follower {
	t.Helper()
	r, err := b.Reader(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	in, out := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	f := &follower{t: t, lines: make(chan string), ended: make(chan error, 1), cancel: cancel}
	go func() {
		err := r.Copy(ctx, out, true)
		r.Close()
		out.Close()
		f.ended <- err
	}()
	go func() {
		defer close(f.lines)
		sc := bufio.NewScanner(in)
		for sc.Scan() {
			_, text, _ := strings.Cut(sc.Text(), ": ")
			f.lines <- text
		}
	}()
	t.Cleanup(func() {
		cancel()
		for range f.lines {
		}
	})
	return f
}

func (f *follower) expect(want string) {
	f.t.Helper()
	if got, ok := <-f.lines; !ok || got != want {
		f.t.Fatalf("the next line is %.100q, %v; want %q", got, ok, want)
	}
}

// A follower has every line, whatever happens to the files and to the VM.
func TestFollow(t *testing.T) {
	b := newBook(t)
	b.Append(t.Context(), user("zero"), user("one"))
	f := b.follow(t, 1)
	f.expect("one")
	b.Append(t.Context(), user("two"))
	f.expect("two")
	// The VM ends and another of its name starts.
	other := b.store.Open(b.path, quiet)
	b.Close()
	other.Append(t.Context(), user("three"))
	f.expect("three")
	b.Log = other
	// Across files, while they are written.
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.fill(12 << 10)
	}()
	var got []string
	for range 12 << 10 {
		got = append(got, <-f.lines)
	}
	<-done
	if first, last := consecutive(t, got); first != 0 || last != b.next-1 {
		t.Errorf("lines %d to %d", first, last)
	}
	f.cancel()
	if err := <-f.ended; !errors.Is(err, context.Canceled) {
		t.Errorf("it ended with %v", err)
	}
}

// One that reads too slowly misses lines and is told so; others do not wait.
func TestSlowFollower(t *testing.T) {
	b := newBook(t)
	b.fill(1)
	f := b.follow(t, 0)
	if first, _ := consecutive(t, []string{<-f.lines}); first != 0 {
		t.Fatal(first)
	}
	b.fill(40 << 10)
	b.Append(t.Context(), user("99999999 the end"))
	last, gaps := 0, 0
	for l := range f.lines {
		if l == "99999999 the end" {
			break
		}
		if l == "lines are missing here: this reader was too slow, or the file was taken away" {
			gaps++
			last, _ = consecutive(t, []string{<-f.lines})
			continue
		}
		n, _ := consecutive(t, []string{l})
		if n != last+1 {
			t.Fatalf("line %d follows %d", n, last)
		}
		last = n
	}
	if gaps != 1 || last != b.next-1 {
		t.Errorf("%d gaps, the last line is %d", gaps, last)
	}
}

// A file that somebody takes away costs what was in it.
func TestFollowWhatIsTakenAway(t *testing.T) {
	b := newBook(t)
	b.fill(6 << 10)
	f := b.follow(t, 1)
	consecutive(t, []string{<-f.lines})
	if err := os.Remove(b.path); err != nil {
		t.Fatal(err)
	}
	b.Append(t.Context(), user("new"))
	f.expect("lines are missing here: this reader was too slow, or the file was taken away")
	f.expect("new")
	b.Append(t.Context(), user("next"))
	f.expect("next")
}

// Removing a log ends those who follow it, and leaves nothing.
func TestRemove(t *testing.T) {
	b := newBook(t)
	b.fill(6 << 10)
	f := b.follow(t, 1)
	consecutive(t, []string{<-f.lines})
	if err := b.store.Remove(t.Context(), b.path, quiet); err != nil {
		t.Fatal(err)
	}
	if _, ok := <-f.lines; ok {
		t.Error("there are lines left")
	}
	if err := <-f.ended; err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(filepath.Dir(b.path)); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := b.store.Remove(t.Context(), b.path, quiet); err != nil {
		t.Errorf("removed again: %v", err)
	}
	b.Append(t.Context(), user("anew"))
	if got := b.read(0); len(got) != 1 {
		t.Errorf("%q", got)
	}
}
