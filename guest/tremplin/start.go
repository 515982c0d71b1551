package tremplin

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/auberge-vm/auberge/guest/tremplin/incus"
	pb "github.com/auberge-vm/auberge/protos/tremplinpb"
	"github.com/google/renameio/v2"
)

const (
	maxToken     = 64       // a container's token
	maxKey       = 64 << 10 // ssh keys
	maxOsRelease = 64 << 10
)

// tokenDevice is the device that a container has of its own.
const tokenDevice = "container_token"

// StartContainer starts a container, in the background.
func (s *Server) StartContainer(ctx context.Context, req *pb.StartContainerRequest) (*pb.StartContainerResponse, error) {
	name := req.ContainerName
	failed := func(err error) (*pb.StartContainerResponse, error) {
		return &pb.StartContainerResponse{Status: pb.StartContainerResponse_FAILED, FailureReason: clip(err.Error())}, nil
	}
	if err := checkStart(req); err != nil {
		return failed(err)
	}
	i, _, err := s.find(ctx, name)
	if err != nil {
		return failed(err)
	}
	config, err := s.privilege(req.PrivilegeLevel)
	if err != nil {
		return failed(err)
	}
	resp := &pb.StartContainerResponse{Status: pb.StartContainerResponse_STARTING, OsRelease: s.osRelease(i)}
	if i.Status != incus.Stopped {
		// The level is of use to the next start only.
		if changes(i.Config, config) {
			if err := onceFree(ctx, func() error { return s.incus.Change(ctx, name, config, nil) }); err != nil {
				return failed(err)
			}
		}
		resp.Status = pb.StartContainerResponse_RUNNING
		return resp, nil
	}
	if s.jobs.is(name, jobStart) {
		return resp, nil
	}
	err = s.jobs.run(name, jobStart, func(ctx context.Context) {
		err := s.withHeartbeat(name, func() error { return s.startNow(ctx, i, req, config) })
		switch {
		case err == nil:
			s.host.start(name, pb.ContainerStartProgress_STARTED, "")
		case wasCancelled(ctx):
			s.host.start(name, pb.ContainerStartProgress_CANCELLED, "the start was cancelled")
		default:
			s.log.Error("container not started", "container", name, "err", err)
			s.host.start(name, pb.ContainerStartProgress_FAILED, err.Error())
		}
	})
	if err != nil {
		return failed(err)
	}
	return resp, nil
}

func checkStart(req *pb.StartContainerRequest) error {
	if err := checkName(req.ContainerName); err != nil {
		return err
	}
	if len(req.Token) > maxToken || strings.ContainsFunc(req.Token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("the token has %d bytes or some that no token has", len(req.Token))
	}
	if len(req.HostPublicKey) > maxKey || len(req.ContainerPrivateKey) > maxKey {
		return errors.New("an ssh key is too long")
	}
	return nil
}

// privilege returns what a level means to Incus.
func (s *Server) privilege(level pb.StartContainerRequest_PrivilegeLevel) (map[string]string, error) {
	switch level {
	case pb.StartContainerRequest_UNCHANGED:
		return nil, nil
	case pb.StartContainerRequest_UNPRIVILEGED:
		return map[string]string{"security.privileged": "false"}, nil
	case pb.StartContainerRequest_PRIVILEGED:
		set, err := readSettings(s.cfg.SettingsPath)
		if err == nil && !set.privileged {
			err = errors.New("this VM was started without allow_privileged_containers: stop it and start it again")
		}
		return map[string]string{"security.privileged": "true"}, err
	}
	return nil, fmt.Errorf("%d is no privilege_level", level)
}

func changes(have, want map[string]string) bool {
	for k, v := range want {
		if have[k] != v && (have[k] != "" || v != "false") {
			return true
		}
	}
	return false
}

// withHeartbeat tells the host again and again that a start is under way.
func (s *Server) withHeartbeat(name string, do func() error) error {
	end := make(chan struct{})
	beaten := make(chan struct{})
	go func() {
		defer close(beaten)
		tick := time.NewTicker(s.cfg.Heartbeat)
		defer tick.Stop()
		for {
			s.host.start(name, pb.ContainerStartProgress_STARTING, "")
			select {
			case <-tick.C:
			case <-end:
				return
			}
		}
	}()
	err := do()
	close(end)
	<-beaten // so that the end is the last word
	return err
}

// startNow gives a container what the host sent for it, and starts it.
func (s *Server) startNow(ctx context.Context, i incus.Instance, req *pb.StartContainerRequest, config map[string]string) error {
	begun := time.Now()
	devices := incus.Devices{}
	if req.Token != "" {
		path, err := s.writeToken(i.Name, req.Token)
		if err != nil {
			return fmt.Errorf("the container's token: %w", err)
		}
		devices[tokenDevice] = map[string]string{"type": "disk", "source": path, "path": "/dev/.container_token", "readonly": "true"}
	} else if i.Devices[tokenDevice] != nil {
		devices[tokenDevice] = nil // of another start
	}
	if err := s.writeKeys(i, req); err != nil {
		return fmt.Errorf("the container's ssh keys: %w", err)
	}
	config = inUse(i, config)
	if !sameDevices(i.Devices, devices) || changes(i.Config, config) {
		if err := onceFree(ctx, func() error { return s.incus.Change(ctx, i.Name, config, devices) }); err != nil {
			return fmt.Errorf("the container's settings: %w", err)
		}
	}
	prepared := time.Now()
	// It may have stopped only just now.
	err := onceFree(ctx, func() error { return s.incus.Start(ctx, i.Name) })
	if err == nil {
		const exact = time.Millisecond
		s.log.Info("container started", "container", i.Name, "after", time.Since(begun).Round(exact),
			"preparing", prepared.Sub(begun).Round(exact))
	}
	return err
}

// inUse adds that a container is no longer one that may be made anew: what runs
// in it is somebody's, whether or not anybody has set up its user.
func inUse(i incus.Instance, config map[string]string) map[string]string {
	if i.Config[setUpKey] != "no" {
		return config
	}
	all := map[string]string{setUpKey: "yes"}
	maps.Copy(all, config)
	return all
}

func sameDevices(have, want incus.Devices) bool {
	for name, d := range want {
		h := have[name]
		if len(h) != len(d) {
			return false
		}
		for k, v := range d {
			if h[k] != v {
				return false
			}
		}
	}
	return true
}

func (s *Server) tokenPath(name string) string {
	return filepath.Join(s.cfg.TokenDir, name+"_token")
}

func (s *Server) writeToken(name, token string) (string, error) {
	if err := os.MkdirAll(s.cfg.TokenDir, 0o755); err != nil {
		return "", err
	}
	path := s.tokenPath(name)
	return path, renameio.WriteFile(path, []byte(token), 0o644, renameio.IgnoreUmask())
}

// Where the container's sshd has its own key, and whom it lets in.
const (
	sshDir         = "/etc/ssh"
	hostKeyPath    = sshDir + "/ssh_host_ed25519_key"
	authorizedPath = sshDir + "/authorized_keys"
)

// writeKeys leaves the keys for the container's sshd, if it has one.
func (s *Server) writeKeys(i incus.Instance, req *pb.StartContainerRequest) error {
	if req.HostPublicKey == "" && req.ContainerPrivateKey == "" {
		return nil
	}
	root, err := s.files(i)
	if err != nil {
		return err
	}
	defer root.Close()
	if !root.Exists(sshDir) {
		s.log.Warn("the container gets no ssh keys: it has no sshd", "container", i.Name)
		return nil
	}
	for _, f := range []struct {
		path, content string
		perm          uint32
	}{{hostKeyPath, req.ContainerPrivateKey, 0o600}, {authorizedPath, req.HostPublicKey, 0o644}} {
		if f.content == "" {
			continue
		}
		if err := root.WriteFile(f.path, []byte(endLine(f.content)), f.perm, 0, 0); err != nil {
			return err
		}
	}
	return nil
}

func endLine(s string) string {
	if s != "" && !strings.HasSuffix(s, "\n") {
		s += "\n"
	}
	return s
}

// osRelease reads what a container says it is.
func (s *Server) osRelease(i incus.Instance) *pb.OsRelease {
	root, err := s.files(i)
	if err != nil {
		return nil
	}
	defer root.Close()
	data, err := root.ReadFile("/etc/os-release", maxOsRelease)
	if err != nil {
		return nil
	}
	return parseOsRelease(data)
}

// maxOsValue bounds a value of os-release(5).
const maxOsValue = 512

func parseOsRelease(data []byte) *pb.OsRelease {
	o := &pb.OsRelease{}
	to := map[string]*string{"PRETTY_NAME": &o.PrettyName, "NAME": &o.Name, "VERSION": &o.Version, "VERSION_ID": &o.VersionId, "ID": &o.Id}
	for line := range strings.Lines(string(data)) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		field := to[key]
		if !ok || field == nil {
			continue
		}
		value = unquote(value)
		*field = strings.ToValidUTF8(value[:min(len(value), maxOsValue)], "?")
	}
	return o
}

// unquote reads a word of a shell as os-release(5) has them.
func unquote(v string) string {
	if len(v) < 2 || v[0] != v[len(v)-1] || v[0] != '"' && v[0] != '\'' {
		return v
	}
	double := v[0] == '"'
	v = v[1 : len(v)-1]
	if !double {
		return v
	}
	var b strings.Builder
	for i := 0; i < len(v); i++ {
		if v[i] == '\\' && i+1 < len(v) {
			i++
		}
		b.WriteByte(v[i])
	}
	return b.String()
}
