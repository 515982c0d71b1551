package policy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// OpenCommand is the first argument with which a program that uses an Opener
// starts itself; its main hands over to OpenMain then.
const OpenCommand = "open-as-caller"

// openTimeout bounds one opening: the file may be on a dead network share.
const openTimeout = 30 * time.Second

var errSlow = fmt.Errorf("it took longer than %v (is it on a network share that does not answer?)", openTimeout)

// An Opener opens files with a caller's rights. A child process with the
// caller's uid, gid and groups does it and hands the descriptor back, so that
// no path is ever looked up, checked or opened with the daemon's rights.
type Opener struct {
	// Program is the program to start, this one when empty.
	Program string
}

// A Mode is how a file is opened.
type Mode string

const (
	ReadOnly  Mode = "ro"
	ReadWrite Mode = "rw"
)

// Open opens the regular file at an absolute path as the caller would. It
// follows the caller's own symbolic links, since only the caller's rights
// apply, but never a magic link of /proc, and never blocks on a FIFO or
// opens a device.
func (o *Opener) Open(ctx context.Context, c Caller, path string, mode Mode) (*os.File, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("open %q: the path must be absolute", path)
	}
	if uint32(os.Geteuid()) == c.UID && !CanSwitch() {
		return openFile(path, mode)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, openTimeout, errSlow)
	defer cancel()
	f, err := o.openAs(ctx, credentialOf(c), path, mode)
	if err != nil {
		return nil, fmt.Errorf("open %s as uid %d: %w", path, c.UID, err)
	}
	return f, nil
}

// credentialOf gives a caller the groups that its process has where the bus
// knows them, the primary one among them, and those of the user database where
// it does not. A uid without an account gets nobody's group.
func credentialOf(c Caller) Credential {
	if len(c.Groups) > 0 {
		return Credential{UID: c.UID, GID: c.Groups[0], Groups: c.Groups}
	}
	const nogroup = 65534
	cred := Credential{UID: c.UID, GID: nogroup}
	u, err := user.LookupId(strconv.FormatUint(uint64(c.UID), 10))
	if err != nil {
		return cred
	}
	if gid, err := strconv.ParseUint(u.Gid, 10, 32); err == nil {
		cred.GID = uint32(gid)
	}
	ids, err := u.GroupIds()
	if err != nil {
		return cred
	}
	for _, id := range ids {
		if gid, err := strconv.ParseUint(id, 10, 32); err == nil {
			cred.Groups = append(cred.Groups, uint32(gid))
		}
	}
	return cred
}

func (o *Opener) openAs(ctx context.Context, cred Credential, path string, mode Mode) (*os.File, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "opener"), os.NewFile(uintptr(pair[1]), "opener")
	defer ours.Close()
	program := o.Program
	if program == "" {
		program = "/proc/self/exe"
	}
	cmd := exec.Command(program, OpenCommand, string(mode), path)
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{theirs}
	// Out of reach of the terminal that this service may have been started on.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = StartAs(cmd, cred)
	theirs.Close()
	if err != nil {
		return nil, err
	}
	// After its answer it has nothing more to do, and its user could have
	// stopped it: it is not waited for alive.
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	// Killing the child closes its end, which ends the reception.
	stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
	defer stop()
	f, err := receiveFile(ours)
	if ctx.Err() != nil {
		if f != nil {
			f.Close()
		}
		return nil, context.Cause(ctx)
	}
	return f, err
}

// receiveFile gets the descriptor or the error number that a child sends. The
// child runs as the caller, who may have taken it over: no answer is believed
// and no descriptor kept beyond the one that was asked for.
func receiveFile(s *os.File) (*os.File, error) {
	conn, err := net.FileConn(s)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	buf := make([]byte, 16)
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := conn.(*net.UnixConn).ReadMsgUnix(buf, oob)
	fds := descriptors(oob[:oobn])
	if len(fds) == 1 && n > 0 {
		return checkRegular(os.NewFile(uintptr(fds[0]), "caller's file"))
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if n == 0 {
		return nil, errors.New("the process that opens files for callers ended without an answer")
	}
	if string(buf[:n]) == notRegular {
		return nil, ErrNotRegular
	}
	errno, err := strconv.Atoi(string(buf[:n]))
	if err != nil || errno <= 0 {
		return nil, errors.New("the process that opens files for callers gave no sensible answer")
	}
	return nil, syscall.Errno(errno)
}

// descriptors returns all descriptors that came with a message. They are
// close-on-exec already.
func descriptors(oob []byte) (all []int) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for _, m := range msgs {
		if fds, err := unix.ParseUnixRights(&m); err == nil {
			all = append(all, fds...)
		}
	}
	return all
}

// ErrNotRegular refuses what is no regular file.
var ErrNotRegular = errors.New("it is not a regular file")

// notRegular is the child's answer for it.
const notRegular = "irregular"

func checkRegular(f *os.File) (*os.File, error) {
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = ErrNotRegular
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// openFile opens with the rights of this process.
func openFile(path string, mode Mode) (*os.File, error) {
	fd, err := openat2(path, mode)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f, err := checkRegular(os.NewFile(uintptr(fd), path))
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return f, nil
}

func openat2(path string, mode Mode) (int, error) {
	// O_NONBLOCK: a FIFO must not hold us up before it is refused.
	flags := uint64(unix.O_CLOEXEC | unix.O_NOCTTY | unix.O_NONBLOCK)
	switch mode {
	case ReadOnly:
		flags |= unix.O_RDONLY
	case ReadWrite:
		flags |= unix.O_RDWR
	default:
		return -1, unix.EINVAL
	}
	// What is no regular file is looked at without being opened: opening a
	// device has effects of its own.
	look, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return -1, err
	}
	defer unix.Close(look)
	var st unix.Stat_t
	if err := unix.Fstat(look, &st); err != nil {
		return -1, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return -1, ErrNotRegular
	}
	for {
		// EAGAIN is final: somebody holds a lease on the file (fcntl(2)), for
		// as long as the kernel lets them.
		fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: flags, Resolve: unix.RESOLVE_NO_MAGICLINKS})
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// OpenMain is the child's side: it opens one file and sends the descriptor,
// or the error number, over descriptor 3. args are those after OpenCommand.
func OpenMain(args []string) int {
	const socket = 3
	if len(args) != 2 {
		return 2
	}
	fd, err := openat2(args[1], Mode(args[0]))
	if err != nil {
		answer := notRegular
		var errno syscall.Errno
		if errors.As(err, &errno) {
			answer = strconv.Itoa(int(errno))
		}
		if unix.Sendmsg(socket, []byte(answer), nil, nil, 0) != nil {
			return 1
		}
		return 0
	}
	if unix.Sendmsg(socket, []byte("0"), unix.UnixRights(fd), nil, 0) != nil {
		return 1
	}
	return 0
}
