package policy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/policy"
)

var (
	asNobody   = policy.Caller{Name: ":1.1", UID: nobody}
	asStranger = policy.Caller{Name: ":1.2", UID: stranger}
)

func TestOpenAsCaller(t *testing.T) {
	needRoot(t)
	dir := publicDir(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	link := func(name, to string) string {
		if err := os.Symlink(to, at(name)); err != nil {
			t.Fatal(err)
		}
		return at(name)
	}
	own := write(t, at("own"), "own", 0o600, stranger, stranger)
	roots := write(t, at("roots"), "secret", 0o600, 0, 0)
	groups := write(t, at("group"), "group", 0o640, 0, 64105)
	nobodys := write(t, at("nogroup"), "nogroup", 0o640, 0, nobody)
	all := write(t, at("all"), "all", 0o444, 0, 0)
	if err := os.Mkdir(at("closed"), 0o700); err != nil {
		t.Fatal(err)
	}
	hidden := write(t, at("closed/file"), "hidden", 0o444, 0, 0)
	odd := write(t, at("a\nb'$(id);\\"), "odd", 0o600, stranger, stranger)
	dash := at("-h")
	write(t, dash, "dash", 0o600, stranger, stranger)
	fifo, socket := at("fifo"), at("socket")
	if err := unix.Mkfifo(fifo, 0o666); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	os.Chmod(socket, 0o777)
	member := policy.Caller{UID: stranger, Groups: []uint32{stranger, 64105}}

	for name, test := range map[string]struct {
		caller  policy.Caller
		path    string
		mode    policy.Mode
		content string
		err     error
	}{
		"own file":                       {caller: asStranger, path: own, content: "own"},
		"own file for writing":           {caller: asStranger, path: own, mode: policy.ReadWrite, content: "own"},
		"root's file":                    {caller: asStranger, path: roots, err: syscall.EACCES},
		"root's file as root":            {caller: policy.Caller{UID: 0}, path: roots, content: "secret"},
		"readable file for writing":      {caller: asStranger, path: all, mode: policy.ReadWrite, err: syscall.EACCES},
		"by a group of the process":      {caller: member, path: groups, content: "group"},
		"without that group":             {caller: asStranger, path: groups, err: syscall.EACCES},
		"by the account's group":         {caller: asNobody, path: nobodys, content: "nogroup"},
		"by a group given up":            {caller: policy.Caller{UID: nobody, Groups: []uint32{64105}}, path: nobodys, err: syscall.EACCES},
		"in a closed directory":          {caller: asStranger, path: hidden, err: syscall.EACCES},
		"through a link":                 {caller: asStranger, path: link("to-own", own), content: "own"},
		"link to root's file":            {caller: asStranger, path: link("to-roots", roots), err: syscall.EACCES},
		"link into a closed directory":   {caller: asStranger, path: link("to-hidden", hidden), err: syscall.EACCES},
		"link to nothing":                {caller: asStranger, path: link("to-nothing", at("none")), err: syscall.ENOENT},
		"link to itself":                 {caller: asStranger, path: link("loop", at("loop")), err: syscall.ELOOP},
		"newline and shell characters":   {caller: asStranger, path: odd, content: "odd"},
		"leading dash":                   {caller: asStranger, path: dash, content: "dash"},
		"missing":                        {caller: asStranger, path: at("missing"), err: syscall.ENOENT},
		"too long a name":                {caller: asStranger, path: at(strings.Repeat("x", 256)), err: syscall.ENAMETOOLONG},
		"directory":                      {caller: asStranger, path: dir, err: policy.ErrNotRegular},
		"FIFO":                           {caller: asStranger, path: fifo, err: policy.ErrNotRegular},
		"FIFO for writing":               {caller: asStranger, path: fifo, mode: policy.ReadWrite, err: policy.ErrNotRegular},
		"socket":                         {caller: asStranger, path: socket, err: policy.ErrNotRegular},
		"device":                         {caller: asStranger, path: "/dev/zero", err: policy.ErrNotRegular},
		"link to a device":               {caller: asStranger, path: link("to-zero", "/dev/zero"), err: policy.ErrNotRegular},
		"magic link to the program":      {caller: asStranger, path: "/proc/self/exe", err: syscall.ELOOP},
		"magic link to a descriptor":     {caller: asStranger, path: "/proc/self/fd/3", err: syscall.ELOOP},
		"link to a magic link":           {caller: asStranger, path: link("to-exe", "/proc/self/exe"), err: syscall.ELOOP},
		"mode that there is none":        {caller: asStranger, path: own, mode: "rwx", err: syscall.EINVAL},
		"nobody's account, own business": {caller: asNobody, path: own, err: syscall.EACCES},
	} {
		t.Run(name, func(t *testing.T) {
			if test.mode == "" {
				test.mode = policy.ReadOnly
			}
			f, err := (&policy.Opener{}).Open(t.Context(), test.caller, test.path, test.mode)
			if test.err != nil {
				if f != nil || !errors.Is(err, test.err) {
					t.Fatalf("opened %v, %v; want %v", f, err, test.err)
				}
				if !strings.Contains(err.Error(), test.path) {
					t.Errorf("the error does not name the file: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			got, err := io.ReadAll(f)
			if err != nil || string(got) != test.content {
				t.Errorf("read %q, %v; want %q", got, err, test.content)
			}
			checkMode(t, f, test.mode)
		})
	}
}

// checkMode checks that a descriptor has the rights asked for and no others,
// and does not reach this process's children.
func checkMode(t *testing.T, f *os.File, mode policy.Mode) {
	t.Helper()
	want := map[policy.Mode]int{policy.ReadOnly: unix.O_RDONLY, policy.ReadWrite: unix.O_RDWR}[mode]
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_ACCMODE != want || flags&unix.O_PATH != 0 {
		t.Errorf("access mode %#o, %v; want %#o", flags, err, want)
	}
	if fl, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || fl&unix.FD_CLOEXEC == 0 {
		t.Errorf("descriptor flags %#x, %v: not close-on-exec", fl, err)
	}
}

func TestOpenNeedsAnAbsolutePath(t *testing.T) {
	for _, path := range []string{"", "vmlinux", "./vmlinux", "../etc/passwd"} {
		f, err := (&policy.Opener{}).Open(t.Context(), policy.Caller{UID: uint32(os.Geteuid())}, path, policy.ReadOnly)
		if f != nil || err == nil || !strings.Contains(err.Error(), "absolute") {
			t.Errorf("%q: %v, %v", path, f, err)
		}
	}
	if _, err := (&policy.Opener{}).Open(t.Context(), policy.Caller{UID: uint32(os.Geteuid())}, "/a\x00b", policy.ReadOnly); err == nil {
		t.Error("a path with NUL was opened")
	}
}

// A caller can take over the child that opens files as the caller. Whatever
// that says, the service keeps nothing of it and ends.
func TestOpenerTakenOver(t *testing.T) {
	needRoot(t)
	open := func(name string) error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		f, err := (&policy.Opener{}).Open(ctx, asStranger, "/"+name, policy.ReadOnly)
		if f != nil {
			f.Close()
			return fmt.Errorf("it gave %s", f.Name())
		}
		return err
	}
	open("impostor-silent") // whatever the runtime opens once is open now
	for name, want := range map[string]string{
		"impostor-silent":    "without an answer",
		"impostor-text":      "no sensible answer",
		"impostor-zero":      "no sensible answer",
		"impostor-minus":     "no sensible answer",
		"impostor-pair":      "no sensible answer",
		"impostor-mute":      "without an answer",
		"impostor-null":      "not a regular file",
		"impostor-directory": "not a regular file",
	} {
		before := descriptors(t)
		if err := open(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
		if after := descriptors(t); after > before {
			t.Errorf("%s: %d descriptors before, %d after", name, before, after)
		}
	}
}

// A child that its user stops after its answer holds nothing up.
func TestOpenerThatDoesNotEnd(t *testing.T) {
	needRoot(t)
	done := make(chan error, 1)
	go func() {
		_, err := (&policy.Opener{}).Open(t.Context(), asStranger, "/impostor-stubborn", policy.ReadOnly)
		done <- err
	}()
	select {
	case err := <-done:
		if !errors.Is(err, syscall.ENOENT) {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("Open waits for the child's end")
	}
}

func TestOpenCancelled(t *testing.T) {
	needRoot(t)
	dir := publicDir(t)
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o666); err != nil {
		t.Fatal(err)
	}
	os.Chmod(fifo, 0o666)
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := (&policy.Opener{}).Open(ctx, asStranger, filepath.Join(dir, "impostor-hanging"), policy.ReadOnly)
		done <- err
	}()
	// The FIFO opens when the child runs.
	f, err := os.Open(fifo)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	why := errors.New("the caller has left")
	cancel(why)
	if err := <-done; !errors.Is(err, why) {
		t.Errorf("%v, want %v", err, why)
	}
	if _, err := (&policy.Opener{}).Open(ctx, asStranger, "/etc/passwd", policy.ReadOnly); !errors.Is(err, why) {
		t.Errorf("with a context that is over: %v", err)
	}
}

// A lease on a file must not keep the opener busy until its time is up.
func TestOpenLeasedFile(t *testing.T) {
	needRoot(t)
	path := write(t, filepath.Join(publicDir(t), "leased"), "x", 0o644, stranger, stranger)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Fatalf("take a lease: %v", err)
	}
	if _, err := (&policy.Opener{}).Open(t.Context(), asStranger, path, policy.ReadOnly); !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("%v, want %v", err, syscall.EAGAIN)
	}
}

// Many callers at once get each their own file, and no descriptor stays.
func TestOpenAtOnce(t *testing.T) {
	needRoot(t)
	dir := publicDir(t)
	const callers = 6
	for i := range callers {
		write(t, filepath.Join(dir, fmt.Sprint(i)), fmt.Sprint(i), 0o600, stranger+i, stranger+i)
	}
	before := -1
	for range 2 {
		var wg sync.WaitGroup
		for i := range callers {
			wg.Go(func() {
				for j := range callers {
					f, err := (&policy.Opener{}).Open(t.Context(), policy.Caller{UID: uint32(stranger + i)}, filepath.Join(dir, fmt.Sprint(j)), policy.ReadOnly)
					if i != j {
						if !errors.Is(err, fs.ErrPermission) {
							t.Errorf("caller %d, file %d: %v", i, j, err)
						}
						continue
					}
					if err != nil {
						t.Error(err)
						continue
					}
					if b, err := io.ReadAll(f); err != nil || string(b) != fmt.Sprint(i) {
						t.Errorf("caller %d read %q, %v", i, b, err)
					}
					f.Close()
				}
			})
		}
		wg.Wait()
		now := descriptors(t)
		if before >= 0 && now > before {
			t.Errorf("%d descriptors before, %d after", before, now)
		}
		before = now
	}
}

// A program that does not exist, and one that is no opener.
func TestOpenerPrograms(t *testing.T) {
	needRoot(t)
	for program, want := range map[string]error{"/nowhere/opener": fs.ErrNotExist, "/bin/true": nil} {
		f, err := (&policy.Opener{Program: program}).Open(t.Context(), asStranger, "/etc/passwd", policy.ReadOnly)
		if f != nil || err == nil || (want != nil && !errors.Is(err, want)) {
			t.Errorf("%s: %v, %v", program, f, err)
		}
	}
}

// Without privileges a service serves its own user, and says why no other.
func TestOpenUnprivileged(t *testing.T) {
	needRoot(t)
	dir := publicDir(t)
	own := write(t, filepath.Join(dir, "own"), "own", 0o600, nobody, nobody)
	roots := write(t, filepath.Join(dir, "roots"), "secret", 0o600, 0, 0)
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o666); err != nil {
		t.Fatal(err)
	}
	runHelper(t, credential(nobody, nobody), "unprivileged", own, roots, fifo)
}

// runHelper runs a function of helpers in a process of its own.
func runHelper(t *testing.T, attr *syscall.SysProcAttr, args ...string) string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env, cmd.Dir = []string{"GORACE=atexit_sleep_ms=0"}, "/"
	cmd.SysProcAttr = attr
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v: %s", args[0], err, &out)
	}
	return out.String()
}

var helpers = map[string]func(args []string) error{
	"unprivileged": unprivileged,
	"ambient":      ambient,
	"show":         show,
}

func unprivileged(args []string) error {
	own, roots, fifo := args[0], args[1], args[2]
	ctx := context.Background()
	self := policy.Caller{UID: uint32(os.Geteuid())}
	o := &policy.Opener{}
	if policy.CanSwitch() {
		return errors.New("it thinks that it can switch users")
	}
	f, err := o.Open(ctx, self, own, policy.ReadWrite)
	if err != nil {
		return fmt.Errorf("own file: %w", err)
	}
	if b, err := io.ReadAll(f); err != nil || string(b) != "own" {
		return fmt.Errorf("own file: %q, %v", b, err)
	}
	for path, want := range map[string]error{
		roots: fs.ErrPermission, fifo: policy.ErrNotRegular, "/dev/zero": policy.ErrNotRegular,
		"/": policy.ErrNotRegular, "/proc/self/exe": syscall.ELOOP, "/nowhere": fs.ErrNotExist,
	} {
		if f, err := o.Open(ctx, self, path, policy.ReadOnly); f != nil || !errors.Is(err, want) {
			return fmt.Errorf("%s: %v, %v, want %v", path, f, err, want)
		}
	}
	if f, err := o.Open(ctx, policy.Caller{UID: stranger}, own, policy.ReadOnly); f != nil || !errors.Is(err, policy.ErrUnprivileged) {
		return fmt.Errorf("as somebody else: %v, %v", f, err)
	}
	if err := policy.StartAs(exec.Command("/bin/true"), policy.Credential{UID: stranger}); !errors.Is(err, policy.ErrUnprivileged) {
		return fmt.Errorf("start as somebody else: %v", err)
	}
	cmd := exec.Command("/bin/true")
	if err := policy.StartAs(cmd, policy.Credential{UID: self.UID}); err != nil {
		return fmt.Errorf("start as itself: %w", err)
	}
	return cmd.Wait()
}
