package core

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// outputLimit is how much of a program's output is kept: its last 64 KiB.
const outputLimit = 64 << 10

// Run runs a program to its end. Any end but exit status 0 is an error that
// carries the last of what the program wrote. When the context ends first, the
// program is killed and awaited.
func (t *Table) Run(ctx context.Context, name string, args ...string) error {
	_, err := t.Output(ctx, name, args...)
	return err
}

// Output is Run that returns the last of what the program wrote.
func (t *Table) Output(ctx context.Context, name string, args ...string) (string, error) {
	path, err := LookPath(name)
	if err != nil {
		return "", err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return "", fmt.Errorf("cannot run %s: %w", name, err)
	}
	defer r.Close()
	p, err := t.Start(Command{
		Path:   path,
		Args:   append([]string{name}, args...),
		Env:    []string{"PATH=" + DefaultPath, "LC_ALL=C"},
		Output: w,
	})
	w.Close()
	if err != nil {
		return "", err
	}
	out := &tail{limit: outputLimit}
	var reading sync.WaitGroup
	reading.Go(func() { r.WriteTo(out) })

	exit, err := p.Wait(ctx)
	if err != nil {
		p.Kill()
		<-p.Done()
	}
	// Descendants may hold the pipe open for ever; what the program itself
	// wrote is in it by now.
	r.SetReadDeadline(time.Unix(1, 0))
	reading.Wait()
	drain(r, out)
	if err != nil {
		return "", fmt.Errorf("%s was stopped: %w", name, err)
	}
	said := strings.TrimSpace(out.String())
	switch {
	case exit.Success():
		return said, nil
	case said != "":
		return "", fmt.Errorf("%s: %s: %s", name, exit, said)
	}
	return "", fmt.Errorf("%s: %s", name, exit)
}

// drain reads what is in a pipe, without waiting for more.
func drain(r *os.File, out *tail) {
	raw, err := r.SyscallConn()
	if err != nil {
		return
	}
	const pipeCapacity = 64 << 10
	raw.Control(func(fd uintptr) {
		buf := make([]byte, pipeCapacity)
		for total := 0; total < pipeCapacity; {
			n, err := unix.Read(int(fd), buf)
			if n <= 0 || err != nil {
				return
			}
			out.Write(buf[:n])
			total += n
		}
	})
}

// A tail keeps the last bytes written to it.
type tail struct {
	limit int
	buf   bytes.Buffer
	cut   bool
}

func (t *tail) Write(p []byte) (int, error) {
	t.buf.Write(p)
	if over := t.buf.Len() - t.limit; over > 0 {
		t.buf.Next(over)
		t.cut = true
	}
	return len(p), nil
}

func (t *tail) String() string {
	if t.cut {
		return "..." + t.buf.String()
	}
	return t.buf.String()
}
