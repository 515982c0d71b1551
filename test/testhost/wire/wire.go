// Package wire is what the test host's agent and the program that runs the
// test host say to each other: HTTP/2 over one virtio-serial port, after a line
// with which the agent says that it is there.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
)

const (
	// Port is the name of the virtio-serial port.
	Port = "io.github.auberge-vm.testhost"
	// Greeting is the agent's first line on it.
	Greeting = "testhost agent 1\n"

	// ExecHeader carries an Exec as JSON.
	ExecHeader = "Testhost-Exec"

	ExecPath   = "/exec"   // runs a command: input is the request, frames are the reply
	LoginPath  = "/login"  // a Login as JSON; the reply comes when the session is there
	LogoutPath = "/logout" // the same
)

// An Exec is a command to run.
type Exec struct {
	Args []string `json:"args"`
	Env  []string `json:"env,omitempty"`
	Dir  string   `json:"dir,omitempty"`
	// Session is the name of the login session to run it in.
	Session string `json:"session,omitempty"`
	// User is whom to run it as otherwise, without any session; empty is root.
	User string `json:"user,omitempty"`
}

// A Login is a login session.
type Login struct {
	Name string `json:"name"`
	User string `json:"user"`
	// TTY is the virtual terminal, as "tty1"; without one the session has no
	// seat, as if the user came from another machine.
	TTY string `json:"tty,omitempty"`
}

// An Exit is how a command ended.
type Exit struct {
	Code   int    `json:"code"`
	Signal string `json:"signal,omitempty"`
	Error  string `json:"error,omitempty"` // it could not be run
}

// Kinds of frames in the reply to an Exec: a byte, the length as four bytes,
// the content.
const (
	Stdout = 'o'
	Stderr = 'e'
	Ended  = 'x' // an Exit as JSON
)

const maxFrame = 1 << 20

// A FrameWriter writes frames of one kind; those of several kinds share the
// lock.
type FrameWriter struct {
	W    io.Writer
	Lock *sync.Mutex
	Kind byte
}

func (f FrameWriter) Write(p []byte) (int, error) {
	f.Lock.Lock()
	defer f.Lock.Unlock()
	written := 0
	for len(p) > 0 {
		n := min(len(p), maxFrame)
		head := binary.BigEndian.AppendUint32([]byte{f.Kind}, uint32(n))
		if _, err := f.W.Write(append(head, p[:n]...)); err != nil {
			return written, err
		}
		if flusher, ok := f.W.(http.Flusher); ok {
			flusher.Flush()
		}
		written += n
		p = p[n:]
	}
	return written, nil
}

// ReadFrames hands on what a command writes until it has ended.
func ReadFrames(r io.Reader, stdout, stderr io.Writer) (Exit, error) {
	for {
		var head [5]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return Exit{}, fmt.Errorf("the test host went away: %w", err)
		}
		length := binary.BigEndian.Uint32(head[1:])
		if length > maxFrame {
			return Exit{}, fmt.Errorf("a frame of %d bytes from the test host", length)
		}
		content := make([]byte, length)
		if _, err := io.ReadFull(r, content); err != nil {
			return Exit{}, fmt.Errorf("the test host went away: %w", err)
		}
		var err error
		switch head[0] {
		case Stdout:
			_, err = stdout.Write(content)
		case Stderr:
			_, err = stderr.Write(content)
		case Ended:
			var exit Exit
			err = json.Unmarshal(content, &exit)
			return exit, err
		default:
			err = fmt.Errorf("a frame of kind %q from the test host", head[0])
		}
		if err != nil {
			return Exit{}, err
		}
	}
}

// protocols is HTTP/2 and nothing else, without TLS.
func protocols() *http.Protocols {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	return p
}

// Server serves the handler to whoever speaks HTTP/2 without TLS.
func Server(handler http.Handler) *http.Server {
	return &http.Server{Handler: handler, Protocols: protocols()}
}

// Transport returns a client side whose connections come from dial.
func Transport(dial func() (net.Conn, error)) *http.Transport {
	return &http.Transport{
		Protocols:          protocols(),
		DisableCompression: true,
		DialContext:        dialer(dial),
	}
}

// URL is the address of a path, on whatever connection.
func URL(path string) *url.URL { return &url.URL{Scheme: "http", Host: "testhost", Path: path} }
