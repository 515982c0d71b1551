package vshd

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/auberge-vm/auberge/protos/vshpb"
)

const (
	rootPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	userPath = "/usr/local/bin:/usr/bin:/bin"
)

// A command is a session's process before it runs.
type command struct {
	user       *account
	path       string
	argv, env  []string
	dir        string
	pty        bool
	rows, cols int32
}

// An execError says that a command cannot be run, with the code that shells
// give in that case: 127 when there is none, 126 when it does not start.
type execError struct {
	code int
	text string
}

func (e *execError) Error() string { return e.text }

// resolve decides what a request runs. Its errors are for the person at the
// client.
func (s *Server) resolve(req *vshpb.SetupConnectionRequest) (*command, error) {
	if err := s.checkTarget(req.GetTarget()); err != nil {
		return nil, err
	}
	user, err := s.lookupUser(req.GetUser())
	if err != nil {
		return nil, err
	}
	if euid := os.Geteuid(); euid != 0 && uint32(euid) != user.uid {
		return nil, fmt.Errorf("vshd runs as uid %d and cannot run a session as user %q", euid, user.name)
	}
	c := &command{user: user, pty: !req.GetNopty(), rows: req.GetWindowRows(), cols: req.GetWindowCols()}
	if c.env, err = s.environment(user, req.GetEnv()); err != nil {
		return nil, err
	}
	if c.dir, err = s.directory(user, req); err != nil {
		return nil, err
	}
	if err := c.setProgram(req.GetCommand(), req.GetArgv()); err != nil {
		return nil, err
	}
	return c, nil
}

// checkTarget leaves a container's name to the host, which looked the container
// up by it and had its agent start this server.
func (s *Server) checkTarget(target string) error {
	switch {
	case target == "":
		return fmt.Errorf("the request names no target; the VM itself is %s", vshpb.Target)
	case s.container && target == vshpb.Target:
		return fmt.Errorf("there is no way to the VM itself (%s) from here: this vshd gives shells in a container only", target)
	case s.container, target == vshpb.Target:
		return nil
	}
	return fmt.Errorf("there is no way into container %q from here: this vshd gives shells in the VM itself only", target)
}

// setProgram turns the request's command and argv into a program: neither is a
// login shell, a command alone a command line for the user's shell, and argv a
// program with its arguments, found in command if that is given too.
func (c *command) setProgram(line string, argv []string) error {
	for _, s := range append([]string{line}, argv...) {
		if strings.ContainsRune(s, 0) {
			return errors.New("the command holds a NUL byte")
		}
	}
	var err error
	switch {
	case len(argv) == 0 && line == "":
		c.path, err = c.find(c.user.shell)
		c.argv = []string{"-" + filepath.Base(c.user.shell)}
	case len(argv) == 0:
		c.path, err = c.find(c.user.shell)
		c.argv = []string{c.user.shell, "-c", line}
	case line == "":
		c.path, err = c.find(argv[0])
		c.argv = argv
	default:
		c.path, err = c.find(line)
		c.argv = argv
	}
	return err
}

// find looks for a program as a shell in c.dir does. Whether the user may run
// it is left to the kernel.
func (c *command) find(name string) (string, error) {
	if name == "" {
		return "", &execError{127, "the command's name is empty"}
	}
	if strings.Contains(name, "/") {
		return name, c.check(name)
	}
	missing := &execError{127, name + ": command not found"}
	for _, dir := range filepath.SplitList(getenv(c.env, "PATH")) {
		if dir == "" {
			dir = "."
		}
		path := dir + "/" + name
		err := c.check(path)
		if err == nil {
			return path, nil
		}
		var denied *execError
		if errors.As(err, &denied) && denied.code == 126 {
			missing = denied
		}
	}
	return "", missing
}

// check looks at a file where the process will: a relative path is left as it
// is, since c.dir may be a link that nothing but the kernel can follow.
func (c *command) check(path string) error {
	at := path
	if !filepath.IsAbs(path) {
		at = c.dir + "/" + path
	}
	switch fi, err := os.Stat(at); {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return &execError{127, path + ": no such file"}
	case err != nil:
		return &execError{126, path + ": " + cause(err).Error()}
	case fi.IsDir():
		return &execError{126, path + ": is a directory"}
	case fi.Mode()&0o111 == 0:
		return &execError{126, path + ": permission denied"}
	}
	return nil
}

// cause leaves out what a fs.PathError says beside the error.
func cause(err error) error {
	if pe, ok := err.(*fs.PathError); ok {
		return pe.Err
	}
	return err
}

// environment is the client's, on top of the server's where that is inherited,
// with defaults for TERM and PATH; who the user is cannot be overridden.
func (s *Server) environment(user *account, asked map[string]string) ([]string, error) {
	path := userPath
	if user.uid == 0 {
		path = rootPath
	}
	env := map[string]string{"PATH": path}
	for _, kv := range s.inherited {
		if k, v, ok := strings.Cut(kv, "="); ok && k != "" {
			env[k] = v
		}
	}
	env["TERM"] = "linux"
	for k, v := range asked {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.ContainsRune(v, 0) {
			return nil, fmt.Errorf("the environment variable %q has a name or value that no process can have", k)
		}
		env[k] = v
	}
	env["HOME"], env["SHELL"] = user.home, user.shell
	env["USER"], env["LOGNAME"] = user.name, user.name
	list := make([]string, 0, len(env))
	for _, k := range slices.Sorted(maps.Keys(env)) {
		list = append(list, k+"="+env[k])
	}
	return list, nil
}

func getenv(env []string, name string) string {
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}

// directory is where the session starts: where it was asked to, or at home,
// or, without a home, at the root.
func (s *Server) directory(user *account, req *vshpb.SetupConnectionRequest) (string, error) {
	dir, pid := req.GetCwd(), req.GetCwdPid()
	switch {
	case dir != "" && pid != 0:
		return "", errors.New("the request gives both a directory and a process to start in")
	case pid != 0:
		return s.directoryOf(user, pid)
	case dir == "":
		if s.checkDirectory(user.home) != nil {
			return "/", nil
		}
		return user.home, nil
	case strings.ContainsRune(dir, 0):
		return "", errors.New("the directory's name holds a NUL byte")
	case !filepath.IsAbs(dir):
		dir = filepath.Join(user.home, dir)
	}
	return dir, s.checkDirectory(dir)
}

func (s *Server) checkDirectory(dir string) error {
	fi, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("no directory %q in %s", dir, s.place)
	case err != nil:
		return fmt.Errorf("cannot start in %q: %w", dir, cause(err))
	case !fi.IsDir():
		return fmt.Errorf("%q is not a directory", dir)
	}
	return nil
}

// directoryOf returns the kernel's link to the directory of one of the user's
// processes. Going there, the kernel checks the user's right once more.
func (s *Server) directoryOf(user *account, pid int32) (string, error) {
	proc := "/proc/" + strconv.Itoa(int(pid))
	text, err := os.ReadFile(proc + "/status")
	if pid < 1 || err != nil {
		return "", fmt.Errorf("no process %d in %s", pid, s.place)
	}
	if !runsAs(string(text), user.uid) {
		return "", fmt.Errorf("process %d does not belong to user %q", pid, user.name)
	}
	return proc + "/cwd", nil
}

// runsAs reads /proc/PID/status: the real, effective, saved and file system
// uid must all be the same.
func runsAs(status string, uid uint32) bool {
	want := strconv.FormatUint(uint64(uid), 10)
	for line := range strings.Lines(status) {
		if ids, ok := strings.CutPrefix(line, "Uid:"); ok {
			f := strings.Fields(ids)
			return len(f) == 4 && !slices.ContainsFunc(f, func(id string) bool { return id != want })
		}
	}
	return false
}
