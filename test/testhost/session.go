package testhost

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/auberge-vm/auberge/test/testhost/wire"
)

// A Session is a user's login, as systemd-logind knows it.
type Session struct {
	host *Host
	wire.Login
}

// Login logs a user in: on a virtual terminal ("tty1") at the machine's seat,
// or without one ("") as if from another machine. The session lasts until
// Logout or the end of the machine.
func (h *Host) Login(ctx context.Context, user, tty string) (*Session, error) {
	name := user
	if tty != "" {
		name += "-" + tty
	}
	s := &Session{host: h, Login: wire.Login{Name: name, User: user, TTY: tty}}
	if err := s.ask(ctx, wire.LoginPath); err != nil {
		return nil, fmt.Errorf("log %s in at %q: %w", user, tty, err)
	}
	return s, nil
}

// Session returns a session by its name, whoever opened it.
func (h *Host) Session(name string) *Session {
	return &Session{host: h, Login: wire.Login{Name: name}}
}

// Logout ends the session and everything in it.
func (s *Session) Logout(ctx context.Context) error { return s.ask(ctx, wire.LogoutPath) }

func (s *Session) ask(ctx context.Context, path string) error {
	body, err := json.Marshal(s.Login)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, wire.URL(path).String(), bytes.NewReader(body))
	if err != nil {
		return err
	}
	response, err := s.host.send(request)
	if err != nil {
		return err
	}
	return response.Body.Close()
}

// ID is what logind calls the session.
func (s *Session) ID(ctx context.Context) (string, error) {
	id, err := s.Output(ctx, "sh", "-c", `echo "$XDG_SESSION_ID"`)
	return strings.TrimSpace(id), err
}

// Activate brings the session's terminal to the front of the seat, and returns
// when logind knows: the terminals change some time after they were asked to.
func (s *Session) Activate(ctx context.Context) error {
	id, err := s.ID(ctx)
	if err != nil {
		return err
	}
	return s.host.Run(ctx, "sh", "-c", `loginctl activate "$1" &&
		until [ "$(loginctl show-session -P Active "$1")" = yes ]; do sleep 0.1; done`, "sh", id)
}

// Run runs a command in the session.
func (s *Session) Run(ctx context.Context, args ...string) error {
	return s.host.Do(ctx, Cmd{Exec: wire.Exec{Args: args, Session: s.Name}})
}

// Output runs a command in the session and returns what it writes.
func (s *Session) Output(ctx context.Context, args ...string) (string, error) {
	var out bytes.Buffer
	err := s.host.Do(ctx, Cmd{Exec: wire.Exec{Args: args, Session: s.Name}, Stdout: &out})
	return out.String(), err
}
