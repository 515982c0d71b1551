package apps

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/auberge-vm/auberge/guest/garcon/desktop"
	"github.com/auberge-vm/auberge/guest/garcon/session"
	pb "github.com/auberge-vm/auberge/protos/containerpb"
)

// LaunchApplication starts the application of an id with files. The response
// says why it did not start.
func (m *Manager) LaunchApplication(ctx context.Context, req *pb.LaunchApplicationRequest) (*pb.LaunchApplicationResponse, error) {
	if err := m.launch(ctx, req); err != nil {
		m.log.Warn("an application did not start", "id", req.GetDesktopFileId(), "err", err)
		return &pb.LaunchApplicationResponse{FailureReason: strings.ToValidUTF8(err.Error(), "\ufffd")}, nil
	}
	return &pb.LaunchApplicationResponse{Success: true}, nil
}

func (m *Manager) launch(ctx context.Context, req *pb.LaunchApplicationRequest) error {
	id := req.GetDesktopFileId()
	e, err := desktop.Find(m.paths.applications(), id)
	if err != nil {
		return err
	}
	switch {
	case e.Type != "Application":
		return fmt.Errorf("%s is no application but a %s", e.Path, e.Type)
	case e.Hidden:
		return fmt.Errorf("%s says that the application was removed", e.Path)
	}
	lines, err := e.Commands(req.GetFiles())
	if err != nil {
		return fmt.Errorf("%s: %w", e.Path, err)
	}
	for i, line := range lines {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("after %d of %d files: %w", i, len(lines), err)
		}
		if e.Terminal {
			if err := m.host.OpenTerminal(ctx, &pb.OpenTerminalRequest{Params: line}); err != nil {
				return fmt.Errorf("the host did not open a terminal for %s: %w", line[0], err)
			}
			continue
		}
		if err := m.start(id, e, req, line); err != nil {
			return err
		}
	}
	return nil
}

func (m *Manager) start(id string, e *desktop.Entry, req *pb.LaunchApplicationRequest, line []string) error {
	env := session.Environ(m.environ, req.GetContainerFeatures(), m.variables(id, e, req))
	program, err := desktop.LookPath(line[0], session.Getenv(env, "PATH"))
	if err != nil {
		return fmt.Errorf("%s: cannot run %q: %w", e.Path, line[0], errors.Unwrap(err))
	}
	dir := m.paths.Home
	if e.Dir != "" {
		dir = e.Dir
	}
	if fi, err := os.Stat(dir); err != nil || !fi.IsDir() {
		if e.Dir != "" {
			return fmt.Errorf("%s: no directory %q to start in", e.Path, dir)
		}
		dir = "/"
	}
	return m.children.start(id, program, line, env, dir)
}

// variables are what the request adds to the environment.
func (m *Manager) variables(id string, e *desktop.Entry, req *pb.LaunchApplicationRequest) map[string]string {
	set := map[string]string{}
	if e.StartupNotify && !m.noStartupNotify {
		set["DESKTOP_STARTUP_ID"] = id
	}
	if req.GetDisplayScaling() == pb.LaunchApplicationRequest_SCALED {
		for _, name := range []string{"DISPLAY", "WAYLAND_DISPLAY", "XCURSOR_SIZE"} {
			if low := session.Getenv(m.environ, name+"_LOW_DENSITY"); low != "" {
				set[name] = low
			}
		}
	}
	return set
}
