package e2e

import (
	"bufio"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/protobuf/proto"
)

type pbMessage = proto.Message

func unmarshal(t *testing.T, b []byte, m proto.Message) {
	t.Helper()
	if err := proto.Unmarshal(b, m); err != nil {
		t.Fatal(err)
	}
}

// restartConcierge kills the service and starts another one.
func (b *bed) restartConcierge(args ...string) {
	b.t.Helper()
	b.concierge.Stop(syscall.SIGKILL)
	b.startConcierge(args...)
}

// A session is a shell in a VM that stays open.
type session struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
	n   int
}

func (c *client) shell(vm string) *session {
	c.t.Helper()
	return c.shellBy("vsh", vm, "--", "sh")
}

// shellBy is a shell that a command leads to.
func (c *client) shellBy(name string, args ...string) *session {
	c.t.Helper()
	cmd := c.bed.Command(c.user, name, args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	s := &session{t: c.t, cmd: cmd, in: in, out: bufio.NewScanner(out)}
	c.t.Cleanup(func() { cmd.Process.Kill() })
	s.say("true")
	return s
}

// say runs a command and returns what it prints.
func (s *session) say(command string) string {
	s.t.Helper()
	s.n++
	end := fmt.Sprintf("end-%d", s.n)
	if _, err := fmt.Fprintf(s.in, "%s\necho %s\n", command, end); err != nil {
		s.t.Fatal(err)
	}
	var lines []string
	for s.out.Scan() {
		if s.out.Text() == end {
			return strings.Join(lines, "\n")
		}
		lines = append(lines, s.out.Text())
	}
	s.t.Fatalf("the shell ended: %v %v", lines, s.out.Err())
	return ""
}

func (s *session) end() {
	s.t.Helper()
	s.in.Close()
	if err := s.cmd.Wait(); err != nil {
		s.t.Error(err)
	}
}
