package core

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// logRead is the longest record or message that is read whole.
const logRead = 8 << 10

// drainMax bounds what is read of a source at its end.
const drainMax = 4096

// A LogSource gives the lines of a log as they come.
type LogSource struct {
	f interface {
		syscall.Conn
		Read([]byte) (int, error)
		SetReadDeadline(time.Time) error
		Close() error
	}
	parse func(record []byte, emit func(LogLine), lost func(uint64))
}

// OpenKernelLog gives the kernel's log from the boot's beginning, as far as
// the kernel still has it.
func OpenKernelLog() (*LogSource, error) {
	f, err := os.OpenFile("/dev/kmsg", os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot read the kernel's log: %w", err)
	}
	next := uint64(0)
	return &LogSource{f: f, parse: func(record []byte, emit func(LogLine), lost func(uint64)) {
		r, ok := parseKmsg(record)
		if !ok {
			return
		}
		// What was overwritten before the first record was read is as lost.
		if r.seq > next {
			lost(r.seq - next)
		}
		next = r.seq + 1
		splitLines(r.text, func(line []byte) {
			emit(LogLine{Severity: r.severity, SinceBoot: r.sinceBoot, Text: line})
		})
	}}, nil
}

// ListenSyslog makes the socket, /dev/log on a real machine, to which programs
// send their messages with syslog(3).
func ListenSyslog(path string) (*LogSource, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cannot take the programs' log: %w", err)
	}
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err == nil {
		err = os.Chmod(path, 0o666)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot take the programs' log: %w", err)
	}
	return &LogSource{f: c, parse: func(message []byte, emit func(LogLine), _ func(uint64)) {
		now := time.Now()
		severity, text := parseSyslog(message)
		splitLines(bytes.Clone(text), func(line []byte) {
			emit(LogLine{Severity: severity, Time: now, Text: line})
		})
	}}, nil
}

// Run hands on every line until Stop, and the number of those that were lost
// before they could be read.
func (s *LogSource) Run(emit func(LogLine), lost func(uint64)) error {
	buf := make([]byte, logRead)
	for {
		n, err := s.f.Read(buf)
		switch {
		case err == nil:
			s.parse(buf[:n], emit, lost)
		case errors.Is(err, unix.EPIPE) || errors.Is(err, unix.EINVAL):
			// Overwritten while it was read, or longer than any: the next one
			// tells by its number what is missing.
		case errors.Is(err, os.ErrDeadlineExceeded):
			s.drain(buf, emit, lost)
			return nil
		default:
			return fmt.Errorf("cannot read a log: %w", err)
		}
	}
}

// drain takes what has come and waits for nothing.
func (s *LogSource) drain(buf []byte, emit func(LogLine), lost func(uint64)) {
	raw, err := s.f.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) {
		for range drainMax {
			n, err := unix.Read(int(fd), buf)
			switch {
			case err == unix.EPIPE || err == unix.EINTR:
			case err != nil:
				return
			default:
				s.parse(buf[:n], emit, lost)
			}
		}
	})
}

// Stop makes Run return when it has handed on what is there.
func (s *LogSource) Stop() { s.f.SetReadDeadline(time.Unix(1, 0)) }

// Close frees the source, after Run.
func (s *LogSource) Close() { s.f.Close() }

// BootTime is when the kernel's clock began, by the machine's clock of now.
func BootTime() time.Time {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return time.Time{}
	}
	return time.Now().Add(-time.Duration(ts.Nano()))
}
