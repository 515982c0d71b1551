package rootfs_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/auberge-vm/auberge/guest/tremplin/rootfs"
	"golang.org/x/sys/unix"
)

// A container with the usual accounts, and beside it what it must not reach.
func container(t *testing.T) (root *rootfs.Root, dir, outside string) {
	t.Helper()
	base := t.TempDir()
	dir, outside = filepath.Join(base, "rootfs"), filepath.Join(base, "outside")
	for _, d := range []string{"/etc/skel", "/home", "/bin", "/var/lib/systemd"} {
		must(t, os.MkdirAll(dir+d, 0o755))
	}
	must(t, os.MkdirAll(outside, 0o755))
	write(t, dir+"/etc/passwd", "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n")
	write(t, dir+"/etc/group", "root:x:0:\nsudo:x:27:\nusers:x:100:\naudio:x:29:pulse\n")
	write(t, dir+"/etc/shadow", "root:*:19000:0:99999:7:::\n")
	write(t, dir+"/etc/gshadow", "root:*::\nsudo:*::\n")
	write(t, dir+"/etc/skel/.profile", "# hello\n")
	write(t, outside+"/passwd", "outside\n")
	must(t, os.Chmod(dir+"/etc/shadow", 0o640))
	root, err := rootfs.Open(dir, nil)
	must(t, err)
	t.Cleanup(func() { root.Close() })
	return root, dir, outside
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(content), 0o644))
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}

var users = rootfs.Users{
	Main: rootfs.Account{Name: "alice", ID: 1000}, Groups: []string{"audio", "sudo", "users", "video"},
	Fixed: []rootfs.Account{{Name: "chronos-access", ID: 1001}, {Name: "android-everybody", ID: 665357}}, Shared: []string{"chronos-access"},
}

func TestAUserIsMade(t *testing.T) {
	root, dir, _ := container(t)
	name, there, err := root.SetUpUser(t.Context(), users)
	if err != nil || there || name != "alice" {
		t.Fatal(name, there, err)
	}
	for file, want := range map[string]string{
		"/etc/passwd": "\nalice:x:1000:1000::/home/alice:/bin/sh\nchronos-access:x:1001:1001::/nonexistent:/usr/sbin/nologin\nandroid-everybody:x:665357:665357:",
		"/etc/group":  "\nsudo:x:27:alice\nusers:x:100:alice\naudio:x:29:pulse,alice\nalice:x:1000:\nchronos-access:x:1001:alice\n",
		"/etc/shadow": "\nalice:!:",
	} {
		if got := read(t, dir+file); !strings.Contains(got, want) {
			t.Errorf("%s:\n%s", file, got)
		}
	}
	if got := read(t, dir+"/home/alice/.profile"); got != "# hello\n" {
		t.Errorf("the home's .profile is %q", got)
	}
	if st, err := os.Stat(dir + "/etc/shadow"); err != nil || st.Mode().Perm() != 0o640 {
		t.Error(st.Mode(), err)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir+"/home/alice", &st); err != nil || st.Uid != 1000 || st.Gid != 1000 || st.Mode&0o777 != 0o700 {
		t.Error(st, err)
	}
	if _, err := os.Stat(dir + "/var/lib/systemd/linger/alice"); err != nil {
		t.Error(err)
	}
	before := read(t, dir+"/etc/passwd") + read(t, dir+"/etc/group") + read(t, dir+"/etc/shadow") + read(t, dir+"/etc/gshadow")
	bob := users
	bob.Main.Name = "bob"
	if name, there, err := root.SetUpUser(t.Context(), bob); err != nil || !there || name != "alice" {
		t.Error(name, there, err)
	}
	if after := read(t, dir+"/etc/passwd") + read(t, dir+"/etc/group") + read(t, dir+"/etc/shadow") + read(t, dir+"/etc/gshadow"); after != before {
		t.Errorf("a second time changed:\n%s\n%s", before, after)
	}
	if name, home, err := root.FindUser(1000); err != nil || name != "alice" || home != "/home/alice" {
		t.Error(name, home, err)
	}
	if _, _, err := root.FindUser(4242); !errors.Is(err, rootfs.ErrNoUser) {
		t.Error(err)
	}
}

func TestANameThatIsAnothersIsRefused(t *testing.T) {
	root, dir, _ := container(t)
	before := read(t, dir+"/etc/passwd")
	nobody := users
	nobody.Main.Name = "nobody"
	if _, _, err := root.SetUpUser(t.Context(), nobody); err == nil {
		t.Error("taken")
	}
	if read(t, dir+"/etc/passwd") != before {
		t.Error("changed")
	}
	write(t, dir+"/etc/passwd", before+"../../x:x:1000:1000::/:/bin/sh\n")
	if _, _, err := root.SetUpUser(t.Context(), users); err == nil {
		t.Error("a name that leads elsewhere was taken")
	}
}

// Whatever a hostile container plants, what is outside stays as it is.
func TestNothingOutsideIsTouched(t *testing.T) {
	for name, plant := range map[string]func(t *testing.T, dir, outside string){
		"etc leads out": func(t *testing.T, dir, out string) { must(t, os.RemoveAll(dir+"/etc")); link(t, out, dir+"/etc") },
		"etc climbs out": func(t *testing.T, dir, out string) {
			must(t, os.RemoveAll(dir+"/etc"))
			link(t, "../outside", dir+"/etc")
		},
		"passwd leads out": func(t *testing.T, dir, out string) {
			must(t, os.Remove(dir+"/etc/passwd"))
			link(t, out+"/passwd", dir+"/etc/passwd")
		},
		"group climbs out": func(t *testing.T, dir, out string) {
			must(t, os.Remove(dir+"/etc/group"))
			link(t, "../../outside/passwd", dir+"/etc/group")
		},
		"home leads out":   func(t *testing.T, dir, out string) { must(t, os.RemoveAll(dir+"/home")); link(t, out, dir+"/home") },
		"linger leads out": func(t *testing.T, dir, out string) { link(t, out, dir+"/var/lib/systemd/linger") },
		"lock leads out":   func(t *testing.T, dir, out string) { link(t, out+"/passwd", dir+"/etc/.pwd.lock") },
		"lock is a FIFO":   func(t *testing.T, dir, out string) { must(t, unix.Mkfifo(dir+"/etc/.pwd.lock", 0o600)) },
		"passwd is a FIFO": func(t *testing.T, dir, out string) {
			must(t, os.Remove(dir+"/etc/passwd"))
			must(t, unix.Mkfifo(dir+"/etc/passwd", 0o600))
		},
		"passwd is endless": func(t *testing.T, dir, out string) { must(t, os.Truncate(dir+"/etc/passwd", 1<<40)) },
		"skel leads out": func(t *testing.T, dir, out string) {
			must(t, os.RemoveAll(dir+"/etc/skel"))
			link(t, out, dir+"/etc/skel")
		},
	} {
		t.Run(name, func(t *testing.T) {
			root, dir, outside := container(t)
			plant(t, dir, outside)
			name, _, err := root.SetUpUser(t.Context(), users)
			t.Log(name, err)
			root.WriteFile("/etc/hostname", []byte("x"), 0o644, 0, 0)
			root.Symlink("/x", "/etc/localtime")
			entries, err := os.ReadDir(outside)
			must(t, err)
			if len(entries) != 1 || read(t, outside+"/passwd") != "outside\n" {
				t.Errorf("outside there is %v", entries)
			}
			if b, err := os.ReadFile(dir + "/home/alice/passwd"); err == nil {
				t.Errorf("read from outside: %q", b)
			}
		})
	}
}

func link(t *testing.T, to, at string) {
	t.Helper()
	must(t, os.Symlink(to, at))
}

func TestARootThatIsALinkIsRefused(t *testing.T) {
	_, dir, outside := container(t)
	must(t, os.Symlink(outside, dir+"-link"))
	if _, err := rootfs.Open(dir+"-link", nil); err == nil {
		t.Error("opened")
	}
	if _, err := rootfs.Open(dir+"-link/x", nil); err == nil {
		t.Error("opened")
	}
}

func TestOwnersAreShifted(t *testing.T) {
	m, err := rootfs.ParseIDMap(`[{"Isuid":true,"Isgid":false,"Hostid":1000000,"Nsid":0,"Maprange":1000},{"Isuid":true,"Isgid":true,"Hostid":1000,"Nsid":1000,"Maprange":1},{"Isuid":false,"Isgid":true,"Hostid":2000000,"Nsid":0,"Maprange":1000}]`)
	must(t, err)
	if a, b, c, d := m.ToDisk(0), m.ToDisk(1000), m.GroupToDisk(5), m.ToDisk(70000); a != 1000000 || b != 1000 || c != 2000005 || d != 65534 {
		t.Error(a, b, c, d)
	}
	for _, bad := range []string{"{", `[{"Isuid":true,"Hostid":-5,"Maprange":1}]`, `[{"Maprange":0}]`, `[{"Hostid":4294967295,"Maprange":2}]`} {
		if _, err := rootfs.ParseIDMap(bad); err == nil {
			t.Errorf("%s was taken", bad)
		}
	}
}

// To open a device can have effects in the VM. A FIFO stands for one here.
func TestOnlyRegularFilesAreOpened(t *testing.T) {
	root, dir, _ := container(t)
	for _, name := range []string{"/etc/os-release", "/etc/.pwd.lock"} {
		must(t, unix.Mkfifo(dir+name, 0o600))
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	must(t, err)
	defer unix.Close(fd)
	for _, name := range []string{"/etc/os-release", "/etc/.pwd.lock"} {
		_, err := unix.InotifyAddWatch(fd, dir+name, unix.IN_OPEN)
		must(t, err)
	}
	if _, err := root.ReadFile("/etc/os-release", 100); err == nil {
		t.Error("a FIFO was read")
	}
	if _, _, err := root.SetUpUser(t.Context(), users); err == nil {
		t.Error("a FIFO was locked")
	}
	if n, err := unix.Read(fd, make([]byte, 4096)); err != unix.EAGAIN {
		t.Errorf("it was opened: %d, %v", n, err)
	}
}

// A file that is there already is not written again; what merely reads like it
// is.
func TestAFileIsWrittenOnce(t *testing.T) {
	root, dir, _ := container(t)
	const name, key = "/etc/ssh_host_key", "a key\n"
	put := func() (ino uint64) {
		t.Helper()
		must(t, root.WriteFile(name, []byte(key), 0o600, 0, 0))
		var st unix.Stat_t
		must(t, unix.Lstat(dir+name, &st))
		if read(t, dir+name) != key || st.Mode != unix.S_IFREG|0o600 || st.Uid != 0 || st.Nlink != 1 {
			t.Fatalf("%q, mode %o, owner %d, %d names", read(t, dir+name), st.Mode, st.Uid, st.Nlink)
		}
		return st.Ino
	}
	first := put()
	if again := put(); again != first {
		t.Error("it was written anew")
	}
	for what, change := range map[string]func() error{
		"other content":      func() error { return os.WriteFile(dir+name, []byte("b key\n"), 0o600) },
		"more content":       func() error { return os.WriteFile(dir+name, []byte(key+"x"), 0o600) },
		"another mode":       func() error { return os.Chmod(dir+name, 0o644) },
		"a mode with set-id": func() error { return unix.Chmod(dir+name, 0o4600) },
		"another owner":      func() error { return os.Chown(dir+name, 1, 0) },
		"another group":      func() error { return os.Chown(dir+name, 0, 1) },
		"two names":          func() error { return os.Link(dir+name, dir+"/etc/other-"+filepath.Base(t.TempDir())) },
		"a link": func() error {
			return errors.Join(os.Rename(dir+name, dir+"/etc/moved"), os.Symlink("moved", dir+name))
		},
	} {
		before := put()
		must(t, change())
		if put() == before {
			t.Errorf("%s: it stays", what)
		}
	}
}
