package policy_test

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/policy"
)

// patience bounds what a test waits for; nothing is asserted on it.
const patience = time.Minute

// nobody has an account and no rights; stranger has not even an account.
const (
	nobody   = 65534
	stranger = 64199
)

// TestMain makes the test binary its own opener, and the processes without
// rights that tests need.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == policy.OpenCommand {
		if play, ok := impostors[filepath.Base(os.Args[3])]; ok {
			play(os.Args[3])
			os.Exit(0)
		}
		os.Exit(policy.OpenMain(os.Args[2:]))
	}
	if len(os.Args) > 1 {
		if play, ok := helpers[os.Args[1]]; ok {
			if err := play(os.Args[2:]); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	goleak.VerifyTestMain(m)
}

// impostors are openers that their user has taken over, by the last element
// of the path that is asked for.
var impostors = map[string]func(path string){
	"impostor-silent": func(string) {},
	"impostor-text":   func(string) { say("hello") },
	"impostor-zero":   func(string) { say("0") },
	"impostor-minus":  func(string) { say("-1") },
	"impostor-pair": func(string) {
		a, b := openNull(), openNull()
		unix.Sendmsg(3, []byte("0"), unix.UnixRights(a, b), nil, 0)
	},
	// An empty packet with a descriptor, which unix.Sendmsg would fill.
	"impostor-mute": func(string) {
		rights := unix.UnixRights(openNull())
		msg := unix.Msghdr{Control: &rights[0]}
		msg.SetControllen(len(rights))
		unix.Syscall(unix.SYS_SENDMSG, 3, uintptr(unsafe.Pointer(&msg)), 0)
	},
	"impostor-null": func(string) { say("0", openNull()) },
	"impostor-directory": func(string) {
		fd, _ := unix.Open("/", unix.O_RDONLY, 0)
		say("0", fd)
	},
	// It answers and stays, as one that its user has stopped would.
	"impostor-stubborn": func(string) {
		say("2")
		unix.Pause()
	},
	// It never answers; that it runs it says on the FIFO beside it.
	"impostor-hanging": func(path string) {
		f, err := os.OpenFile(filepath.Join(filepath.Dir(path), "fifo"), os.O_WRONLY, 0)
		if err == nil {
			f.Close()
		}
		unix.Pause()
	},
}

func say(word string, fds ...int) {
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	unix.Sendmsg(3, []byte(word), rights, nil, 0)
}

func openNull() int {
	fd, _ := unix.Open("/dev/null", unix.O_RDONLY, 0)
	return fd
}

// needRoot fails where nothing can be done as another user.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("acts as several users and needs root for that")
	}
}

// publicDir is a directory that everybody can reach.
func publicDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for d := dir; d != "/"; d = filepath.Dir(d) {
		fi, err := os.Stat(d)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode()&0o001 == 0 {
			t.Fatalf("other users cannot reach %s: set TMPDIR to a directory that they can", d)
		}
	}
	return dir
}

// write makes a file with the given owner.
func write(t *testing.T, path, text string, mode os.FileMode, uid, gid int) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, uid, gid); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// descriptors counts this process's open files.
func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func credential(uid, gid uint32) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
}
