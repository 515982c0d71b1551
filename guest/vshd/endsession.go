package vshd

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// endSession waits for every process of a session (setsid(2)) to exit, and
// kills what is left after the grace. The session's leader must not have been
// reaped, which keeps its id from being given to somebody else.
func endSession(id int, grace time.Duration) error {
	const rounds = 10 // of a second each, for what is being killed
	deadline := time.Now().Add(grace)
	for kills := 0; kills < rounds; {
		fds, err := members(id)
		if err != nil || len(fds) == 0 {
			return err
		}
		wait := time.Until(deadline)
		if wait <= 0 {
			kills++
			wait = time.Second
			for _, fd := range fds {
				unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			}
		}
		waitAll(fds, wait)
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
	return errors.New("processes of the session cannot be killed")
}

// members returns a pidfd of every live process of a session.
func members(id int) ([]int, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var fds []int
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || !inSession(name, id) {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		if !inSession(name, id) { // another process by now
			unix.Close(fd)
			continue
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

// inSession reads /proc/PID/stat: after the name in parentheses come the
// state, the parent, the process group and the session.
func inSession(pid string, id int) bool {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return false
	}
	f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(f) < 4 {
		return false
	}
	session, err := strconv.Atoi(string(f[3]))
	dead := f[0][0] == 'Z' || f[0][0] == 'X'
	return err == nil && session == id && !dead
}

// waitAll waits until all processes have exited or the time is over.
func waitAll(fds []int, d time.Duration) {
	deadline := time.Now().Add(d)
	for _, fd := range fds {
		for {
			left := time.Until(deadline)
			if left < 0 {
				return
			}
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
			if n > 0 || (err != nil && err != unix.EINTR) {
				break
			}
		}
	}
}
