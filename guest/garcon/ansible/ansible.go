// Package ansible applies playbooks of the host to the container, one at a
// time, with the ansible-playbook that is installed there.
package ansible

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/auberge-vm/auberge/guest/garcon/desktop"
	"github.com/auberge-vm/auberge/guest/garcon/session"
	"github.com/auberge-vm/auberge/guest/garcon/turn"
)

const (
	// applyTime is the most that a playbook may take.
	applyTime = time.Hour
	// killTime is for its processes to end after SIGTERM; the agent, which may
	// be about to end itself, has no more.
	killTime = 4 * time.Second
	// maxPlaybook bounds the text, in bytes.
	maxPlaybook = 1 << 20
	// maxDetails bounds what is told of a failure.
	maxDetails = 8 << 10
	// callback is a plugin that prints for us, where somebody installed it.
	callback = "/usr/share/ansible/plugins/callback/garcon.py"
)

// A Reporter hears how a playbook goes on. Its methods do not wait.
type Reporter interface {
	// Lines come as they are printed.
	Lines(lines []string)
	// Done comes once, last; err is nil for success.
	Done(err error)
}

// ErrBusy says that another playbook is not done yet.
var ErrBusy = errors.New("another playbook is being applied; try again when that is over")

var (
	errStopping = errors.New("the container's agent is stopping, and the playbook was stopped with it")
	errTooLong  = fmt.Errorf("the playbook was not done after %s and was stopped", applyTime)
)

// A Runner applies playbooks.
type Runner struct {
	environ []string
	report  Reporter
	log     *slog.Logger
	limit   time.Duration
	batch   time.Duration

	turn *turn.Turn
}

// New returns a runner; Close ends it. environ is what ansible-playbook gets;
// its PATH says where that is.
func New(environ []string, report Reporter, log *slog.Logger) *Runner {
	return &Runner{environ: environ, report: report, log: log, limit: applyTime, batch: batchTime, turn: turn.New(errStopping)}
}

// Close stops what goes on and waits for its last report.
func (r *Runner) Close() { r.turn.Close() }

// Apply begins to apply a playbook.
func (r *Runner) Apply(playbook string) error {
	switch {
	case strings.TrimSpace(playbook) == "":
		return errors.New("the playbook is empty")
	case len(playbook) > maxPlaybook:
		return fmt.Errorf("the playbook has %d bytes, more than %d", len(playbook), maxPlaybook)
	}
	program, err := desktop.LookPath("ansible-playbook", session.Getenv(r.environ, "PATH"))
	if err != nil {
		return errors.New("ansible-playbook is not installed in this container (sudo apt install ansible-core)")
	}
	if err := r.turn.Take(); errors.Is(err, turn.ErrTaken) {
		return ErrBusy
	} else if err != nil {
		return err
	}
	dir, file, err := save(playbook)
	if err != nil {
		r.turn.GiveBack()
		return err
	}
	j := r.prepare(program, dir, file)
	if err := j.cmd.Start(); err != nil {
		j.cancel()
		os.RemoveAll(dir)
		r.turn.GiveBack()
		return fmt.Errorf("start ansible-playbook: %w", err)
	}
	r.log.Info("a playbook is applied", "pid", j.cmd.Process.Pid)
	go func() {
		err := j.wait()
		if e := os.RemoveAll(dir); e != nil {
			r.log.Warn("a playbook's file is left", "err", e)
		}
		r.log.Info("a playbook was applied", "err", err)
		r.turn.End(func() { r.report.Done(err) })
	}()
	return nil
}

// save writes the text where its user alone can read it.
func save(playbook string) (dir, file string, err error) {
	if dir, err = os.MkdirTemp("", "garcon-playbook-"); err != nil {
		return "", "", fmt.Errorf("save the playbook: %w", err)
	}
	file = filepath.Join(dir, "playbook.yaml")
	if err := os.WriteFile(file, []byte(playbook), 0o600); err != nil {
		os.RemoveAll(dir)
		return "", "", fmt.Errorf("save the playbook: %w", err)
	}
	return dir, file, nil
}

// A job is one playbook.
type job struct {
	cmd            *exec.Cmd
	ctx            context.Context
	cancel         context.CancelFunc
	out            *batcher
	stdout, stderr *lines
}

// prepare makes the command: the container itself is the one host, and what
// needs root gets it by sudo.
func (r *Runner) prepare(program, dir, file string) *job {
	ctx, cancel := context.WithTimeoutCause(r.turn.Context, r.limit, errTooLong)
	cmd := exec.CommandContext(ctx, program, "--become", "--connection=local", "--inventory=127.0.0.1,",
		"--extra-vars=ansible_python_interpreter=/usr/bin/python3", file)
	cmd.Dir = dir
	cmd.Env = append(r.environ[:len(r.environ):len(r.environ)],
		"ANSIBLE_NOCOLOR=1", "ANSIBLE_DEPRECATION_WARNINGS=False", "ANSIBLE_LOCALHOST_WARNING=False")
	if _, err := os.Stat(callback); err == nil {
		cmd.Env = append(cmd.Env, "ANSIBLE_STDOUT_CALLBACK=garcon")
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = killTime
	j := &job{cmd: cmd, ctx: ctx, cancel: cancel, out: newBatcher(r.report.Lines, r.batch)}
	j.stdout, j.stderr = &lines{put: j.out.put}, &lines{put: j.out.put, keep: maxDetails}
	cmd.Stdout, cmd.Stderr = j.stdout, j.stderr
	return j
}

// wait returns when the playbook is done and all its lines are reported.
func (j *job) wait() error {
	pid := j.cmd.Process.Pid
	err := j.cmd.Wait()
	cause := context.Cause(j.ctx)
	j.cancel()
	syscall.Kill(-pid, syscall.SIGKILL) // what it left behind in its group
	j.stdout.flush()
	j.stderr.flush()
	j.out.close()
	errors := strings.TrimSpace(string(j.stderr.kept))
	switch {
	case cause != nil:
		return cause
	case err != nil:
		return fmt.Errorf("ansible-playbook ended with %w: %s", err, orElse(errors, "the lines it printed say why"))
	case errors != "":
		return fmt.Errorf("ansible-playbook complained: %s", strings.ToValidUTF8(errors, "?"))
	}
	return nil
}

func orElse(text, other string) string {
	if text == "" {
		return other
	}
	return strings.ToValidUTF8(text, "?")
}
