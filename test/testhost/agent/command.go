package main

import (
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"os/exec"
	"os/user"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/auberge-vm/auberge/test/testhost/wire"
)

// leftover is how long the output of a command that has ended is waited for:
// what it started may go on, and hold it open.
const leftover = 3 * time.Second

// runCommand runs a command for as long as somebody listens.
func runCommand(w http.ResponseWriter, r *http.Request, e wire.Exec) {
	var lock sync.Mutex
	frames := func(kind byte) io.Writer { return wire.FrameWriter{W: w, Lock: &lock, Kind: kind} }
	w.WriteHeader(http.StatusOK)
	w.(http.Flusher).Flush()

	cmd := exec.CommandContext(r.Context(), e.Args[0], e.Args[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = e.Dir, frames(wire.Stdout), frames(wire.Stderr)
	cmd.WaitDelay = leftover
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	exit := wire.Exit{}
	if err := start(cmd, e, r.Body); err != nil {
		exit = wire.Exit{Code: 127, Error: err.Error()}
	} else {
		exit = ended(cmd, cmd.Wait())
	}
	content, err := json.Marshal(exit)
	if err == nil {
		_, err = frames(wire.Ended).Write(content)
	}
	if err != nil && r.Context().Err() == nil {
		log.Printf("cannot report the end of %q: %v", e.Args, err)
	}
}

func start(cmd *exec.Cmd, e wire.Exec, input io.Reader) error {
	cmd.Env = append(cmd.Environ(), "LC_ALL=C.UTF-8")
	if e.Session == "" {
		who := e.User
		if who == "" {
			who = "root"
		}
		if err := become(cmd, who); err != nil {
			return err
		}
	}
	cmd.Env = append(cmd.Env, e.Env...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	// Ends when the command or the request does.
	go func() {
		io.Copy(stdin, input)
		stdin.Close()
	}()
	return nil
}

// become makes the command another user's, with that user's groups.
func become(cmd *exec.Cmd, name string) error {
	u, err := user.Lookup(name)
	if err != nil {
		return err
	}
	number := func(s string) uint32 {
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			panic(err) // of /etc/passwd
		}
		return uint32(n)
	}
	ids, err := u.GroupIds()
	if err != nil {
		return err
	}
	credential := &syscall.Credential{Uid: number(u.Uid), Gid: number(u.Gid)}
	for _, id := range ids {
		credential.Groups = append(credential.Groups, number(id))
	}
	cmd.SysProcAttr.Credential = credential
	if cmd.Dir == "" {
		cmd.Dir = u.HomeDir
	}
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8",
		"HOME=" + u.HomeDir, "USER=" + name, "LOGNAME=" + name, "SHELL=/bin/bash"}
	return nil
}

func ended(cmd *exec.Cmd, err error) wire.Exit {
	if cmd.ProcessState == nil {
		return wire.Exit{Code: 127, Error: err.Error()}
	}
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return wire.Exit{Code: 128 + int(status.Signal()), Signal: status.Signal().String()}
	}
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) && !errors.Is(err, exec.ErrWaitDelay) {
		return wire.Exit{Code: cmd.ProcessState.ExitCode(), Error: err.Error()}
	}
	return wire.Exit{Code: cmd.ProcessState.ExitCode()}
}
