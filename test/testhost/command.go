package testhost

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/auberge-vm/auberge/test/testhost/wire"
)

// A Cmd is a command to run in the host. Without a Session it is root's, or
// User's, and belongs to no login.
type Cmd struct {
	wire.Exec
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// An ExitError is a command that ended with another code than 0.
type ExitError struct {
	Args   []string
	Exit   wire.Exit
	Stderr string
}

func (e *ExitError) Error() string {
	how := fmt.Sprintf("code %d", e.Exit.Code)
	if e.Exit.Signal != "" {
		how = "signal " + e.Exit.Signal
	}
	if e.Exit.Error != "" {
		how = e.Exit.Error
	}
	return fmt.Sprintf("in the test host, %q ended with %s: %s", e.Args, how, strings.TrimSpace(e.Stderr))
}

// Do runs a command; one that ends with another code than 0 is an *ExitError.
func (h *Host) Do(ctx context.Context, c Cmd) error {
	head, err := json.Marshal(c.Exec)
	if err != nil {
		return err
	}
	if c.Stdin == nil {
		c.Stdin = http.NoBody
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, wire.URL(wire.ExecPath).String(), c.Stdin)
	if err != nil {
		return err
	}
	request.Header.Set(wire.ExecHeader, string(head))
	response, err := h.send(request)
	if err != nil {
		return fmt.Errorf("run %q in the test host: %w", c.Args, err)
	}
	defer response.Body.Close()
	var said bytes.Buffer
	stdout, stderr := orDiscard(c.Stdout), io.Writer(&said)
	if c.Stderr != nil {
		stderr = io.MultiWriter(&said, c.Stderr)
	}
	exit, err := wire.ReadFrames(response.Body, stdout, stderr)
	if err != nil {
		return fmt.Errorf("run %q in the test host: %w", c.Args, err)
	}
	if exit != (wire.Exit{}) {
		return &ExitError{Args: c.Args, Exit: exit, Stderr: said.String()}
	}
	return nil
}

func orDiscard(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

// send has the agent answer a request.
func (h *Host) send(request *http.Request) (*http.Response, error) {
	m, err := h.current()
	if err != nil {
		return nil, err
	}
	response, err := m.client.Do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		defer response.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(response.Body, 64<<10))
		return nil, errors.New(strings.TrimSpace(string(text)))
	}
	return response, nil
}

// Run runs a command as root.
func (h *Host) Run(ctx context.Context, args ...string) error {
	return h.Do(ctx, Cmd{Exec: wire.Exec{Args: args}})
}

// Output runs a command as root and returns what it writes.
func (h *Host) Output(ctx context.Context, args ...string) (string, error) {
	var out bytes.Buffer
	err := h.Do(ctx, Cmd{Exec: wire.Exec{Args: args}, Stdout: &out})
	return out.String(), err
}

// WriteFile makes a file in the host.
func (h *Host) WriteFile(ctx context.Context, path string, content []byte, mode string) error {
	return h.Do(ctx, Cmd{
		Exec:  wire.Exec{Args: []string{"install", "-D", "-m", mode, "/dev/stdin", path}},
		Stdin: bytes.NewReader(content),
	})
}
