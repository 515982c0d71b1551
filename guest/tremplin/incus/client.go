package incus

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// maxAnswer bounds one answer of the server.
const maxAnswer = 16 << 20

// dialTimeout bounds a connection's making; the server is on this machine.
const dialTimeout = 5 * time.Second

// callWait bounds one short call and its turn. Incus' own patience with its
// database is less than that.
const callWait = 3 * time.Minute

// A Client calls one server. It keeps nothing of it, so the server may be
// another one after each call.
type Client struct {
	socket string
	http   *http.Client
	// turn is held during short calls. Incus 6.0 can answer several at once,
	// but now and then its database then stands still for its timeout of 30 s.
	turn chan struct{}
	wait time.Duration // callWait, unless a test has no time
}

// New returns a client of the server that listens, or will, at a socket.
func New(socket string) *Client {
	d := net.Dialer{Timeout: dialTimeout}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, err := d.DialContext(ctx, "unix", socket)
		if err != nil {
			return nil, err
		}
		return &watchedConn{Conn: conn}, nil
	}
	return &Client{socket: socket, turn: make(chan struct{}, 1), wait: callWait, http: &http.Client{Transport: &http.Transport{
		WriteBufferSize: 64 << 10, // for images: one write each of what is copied at once
		DialContext:     dial, DisableCompression: true, MaxIdleConns: 4, MaxIdleConnsPerHost: 4, IdleConnTimeout: 30 * time.Second,
	}}}
}

// Close lets go of idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// An Error is what the server answered instead of doing it.
type Error struct {
	Code int
	Text string
}

func (e *Error) Error() string { return fmt.Sprintf("Incus: %s", e.Text) }

// IsNotFound tells whether the server knows no such thing.
func IsNotFound(err error) bool { return hasCode(err, http.StatusNotFound) }

// IsConflict tells whether there is such a thing already.
func IsConflict(err error) bool { return hasCode(err, http.StatusConflict) }

func hasCode(err error, code int) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}

// IsBusy tells whether an instance is in the hands of another operation.
func IsBusy(err error) bool {
	var e *Error
	return errors.As(err, &e) && strings.Contains(e.Text, "busy running")
}

// IsGone tells whether the server ended or is not there, rather than refused.
func IsGone(err error) bool {
	var e *Error
	return err != nil && !errors.As(err, &e) && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
}

// answer is the envelope of every answer.
type answer struct {
	Type      string          `json:"type"`
	Operation string          `json:"operation"`
	Code      int             `json:"error_code"`
	Error     string          `json:"error"`
	Metadata  json.RawMessage `json:"metadata"`
}

// call sends a request, whose body is JSON unless it is nil, and puts the
// answer's metadata into out unless that is nil.
func (c *Client) call(ctx context.Context, method, path string, body, out any) (answer, error) {
	var r io.Reader
	header := http.Header{}
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return answer{}, err
		}
		r = bytes.NewReader(data)
		header.Set("Content-Type", "application/json")
	}
	ctx, cancel := context.WithTimeout(ctx, c.wait)
	defer cancel()
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return answer{}, context.Cause(ctx)
	}
	return c.send(ctx, method, path, header, r, out)
}

// await is call for what the server answers when something has happened.
func (c *Client) await(ctx context.Context, path string, out any) error {
	_, err := c.send(ctx, http.MethodGet, path, nil, nil, out)
	return err
}

func (c *Client) send(ctx context.Context, method, path string, header http.Header, body io.Reader, out any) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://incus"+path, body)
	if err != nil {
		return answer{}, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return answer{}, fmt.Errorf("Incus does not answer %s %s: %w", method, path, unwrapURL(err))
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return answer{}, fmt.Errorf("Incus broke off its answer to %s %s: %w", method, path, err)
	}
	if len(data) > maxAnswer {
		return answer{}, fmt.Errorf("the answer to %s %s is larger than %d bytes", method, path, maxAnswer)
	}
	return decode(method+" "+path, resp.StatusCode, data, out)
}

// decode reads an answer to what was asked.
func decode(asked string, code int, data []byte, out any) (answer, error) {
	var a answer
	if err := json.Unmarshal(data, &a); err != nil {
		return answer{}, fmt.Errorf("Incus' answer to %s (HTTP %d) is not understood: %w", asked, code, err)
	}
	if a.Type == "error" || code >= 400 {
		if a.Code == 0 {
			a.Code = code
		}
		return a, &Error{Code: a.Code, Text: a.Error}
	}
	if out != nil {
		if err := json.Unmarshal(a.Metadata, out); err != nil {
			return a, fmt.Errorf("Incus' answer to %s is not understood: %w", asked, err)
		}
	}
	return a, nil
}

// unwrapURL leaves out the made-up address, which helps nobody.
func unwrapURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// A Server is what Incus says of itself.
type Server struct {
	Config      map[string]string `json:"config"`
	Environment struct {
		Version       string   `json:"server_version"`
		PID           int      `json:"server_pid"`
		Architectures []string `json:"architectures"`
	} `json:"environment"`
}

// Server asks the server for its state; the call works as soon as it listens.
func (c *Client) Server(ctx context.Context) (Server, error) {
	var s Server
	_, err := c.call(ctx, http.MethodGet, "/1.0", nil, &s)
	return s, err
}

// SetConfig sets keys of the server's configuration and leaves the others.
func (c *Client) SetConfig(ctx context.Context, config map[string]string) error {
	_, err := c.call(ctx, http.MethodPatch, "/1.0", map[string]any{"config": config}, nil)
	return err
}

// WaitReady returns when the server has started wholly.
func (c *Client) WaitReady(ctx context.Context) error {
	retry := time.NewTicker(100 * time.Millisecond)
	defer retry.Stop()
	for {
		// The server's socket is there some time before it is ready.
		_, err := c.call(ctx, http.MethodGet, "/internal/ready", nil, nil)
		if err == nil {
			return nil
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
			return fmt.Errorf("%w; last: %w", ctx.Err(), err)
		}
	}
}

// exists tells whether the server knows a path.
func (c *Client) exists(ctx context.Context, path string) (bool, error) {
	_, err := c.call(ctx, http.MethodGet, path, nil, nil)
	if IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

func escape(s string) string { return url.PathEscape(s) }
