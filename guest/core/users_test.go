package core

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// accountRoot is a file tree with accounts as Debian has them.
func accountRoot(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root to give files away")
	}
	root := t.TempDir()
	for _, d := range []string{"/etc/skel/.config", "/home", "/bin", "/var/lib/systemd"} {
		if err := os.MkdirAll(root+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	writeFile(t, root+"/etc/passwd", "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n+nis\n")
	writeFile(t, root+"/etc/group", "root:x:0:\ndaemon:x:1:\nsudo:x:27:root\nvideo:x:44:\nusers:x:100:\n")
	writeFile(t, root+"/etc/shadow", "root:*:20000:0:99999:7:::\ndaemon:*:20000:0:99999:7:::\n")
	writeFile(t, root+"/etc/gshadow", "root:*::\ndaemon:*::\nsudo:*::root\nvideo:*::\nusers:*::\n")
	writeFile(t, root+"/etc/skel/.config/x", "skel")
	for _, f := range []string{"shadow", "gshadow"} {
		if err := errors.Join(os.Chmod(root+"/etc/"+f, 0o640), os.Chown(root+"/etc/"+f, 0, 42)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func fileText(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestSetUpUser(t *testing.T) {
	root := accountRoot(t)
	name, err := SetUpUser(t.Context(), root, UserSpec{Name: "emil", UID: 1000, Groups: []string{"sudo", "video"}})
	if err != nil || name != "emil" {
		t.Fatalf("%q, %v", name, err)
	}
	for file, want := range map[string]string{
		"passwd":  "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n+nis\nemil:x:1000:1000::/home/emil:/bin/sh\n",
		"group":   "root:x:0:\ndaemon:x:1:\nsudo:x:27:root,emil\nvideo:x:44:emil\nusers:x:100:\nemil:x:1000:\n",
		"gshadow": "root:*::\ndaemon:*::\nsudo:*::root,emil\nvideo:*::emil\nusers:*::\nemil:!::\n",
	} {
		if got := fileText(t, root+"/etc/"+file); got != want {
			t.Errorf("%s holds %q, want %q", file, got, want)
		}
	}
	if got := fileText(t, root+"/etc/shadow"); !strings.Contains(got, "\nemil:!:") || strings.Count(got, "\n") != 3 {
		t.Errorf("shadow holds %q", got)
	}
	info, err := os.Stat(root + "/etc/shadow")
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); info.Mode() != 0o640 || st.Gid != 42 {
		t.Errorf("shadow is %v of group %d now", info.Mode(), st.Gid)
	}
	for path, mode := range map[string]os.FileMode{"/home/emil": os.ModeDir | 0o700, "/home/emil/.config": os.ModeDir | 0o755, "/home/emil/.config/x": 0o644} {
		info, err := os.Stat(root + path)
		if err != nil {
			t.Fatal(err)
		}
		if st := info.Sys().(*syscall.Stat_t); info.Mode() != mode || st.Uid != 1000 || st.Gid != 1000 {
			t.Errorf("%s is %v of %d:%d", path, info.Mode(), st.Uid, st.Gid)
		}
	}
	if _, err := os.Stat(root + "/var/lib/systemd/linger/emil"); err != nil {
		t.Error(err)
	}

	// Whoever has the uid keeps his name, and joins what is asked.
	name, err = SetUpUser(t.Context(), root, UserSpec{Name: "frida", UID: 1000, Groups: []string{"users", "sudo"}})
	if err != nil || name != "emil" {
		t.Fatalf("%q, %v", name, err)
	}
	if got := fileText(t, root+"/etc/group"); !strings.Contains(got, "users:x:100:emil\n") || !strings.Contains(got, "sudo:x:27:root,emil\n") {
		t.Errorf("group holds %q", got)
	}
	// A second user gets numbers of his own, and a group that has his name.
	writeFile(t, root+"/etc/group", fileText(t, root+"/etc/group")+"taken:x:1001:\n")
	if _, err := SetUpUser(t.Context(), root, UserSpec{Name: "frida", UID: 1001}); err != nil {
		t.Fatal(err)
	}
	if got := fileText(t, root+"/etc/passwd"); !strings.HasSuffix(got, "frida:x:1001:1002::/home/frida:/bin/sh\n") {
		t.Errorf("passwd holds %q", got)
	}
}

func TestSetUpUserRefuses(t *testing.T) {
	root := accountRoot(t)
	before := fileText(t, root+"/etc/passwd") + fileText(t, root+"/etc/group")
	for what, u := range map[string]UserSpec{
		"no name":                  {UID: 1000},
		"root's uid":               {Name: "emil", UID: 0},
		"nobody's uid":             {Name: "emil", UID: 1<<32 - 1},
		"a colon":                  {Name: "emil:x:0:0::/:/bin/sh", UID: 1000},
		"a line break":             {Name: "emil\nroot2", UID: 1000},
		"a line break at the end":  {Name: "emil\n", UID: 1000},
		"a capital":                {Name: "Emil", UID: 1000},
		"a digit first":            {Name: "1emil", UID: 1000},
		"a path":                   {Name: "../emil", UID: 1000},
		"a dollar in the middle":   {Name: "em$il", UID: 1000},
		"33 letters":               {Name: strings.Repeat("e", 33), UID: 1000},
		"another's name":           {Name: "daemon", UID: 1000},
		"root's name":              {Name: "root", UID: 1000},
		"a group that is not":      {Name: "emil", UID: 1000, Groups: []string{"sudo", "wheel"}},
		"a group that is two":      {Name: "emil", UID: 1000, Groups: []string{"sudo,video"}},
		"an existing user, ditto":  {Name: "emil", UID: 1, Groups: []string{"wheel"}},
		"a group with a line more": {Name: "emil", UID: 1000, Groups: []string{"sudo\nx"}},
	} {
		if name, err := SetUpUser(t.Context(), root, u); err == nil || name != "" {
			t.Errorf("%s: %q, %v", what, name, err)
		}
	}
	if after := fileText(t, root+"/etc/passwd") + fileText(t, root+"/etc/group"); after != before {
		t.Errorf("the accounts have changed: %q", after)
	}
	if entries, _ := os.ReadDir(root + "/home"); len(entries) > 0 {
		t.Errorf("homes: %v", entries)
	}
}

// A home that is there is another's until an administrator says otherwise.
func TestSetUpUserLeavesHomes(t *testing.T) {
	root := accountRoot(t)
	if err := os.Mkdir(root+"/home/emil", 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, root+"/home/emil/f", "")
	if _, err := SetUpUser(t.Context(), root, UserSpec{Name: "emil", UID: 1000}); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(root+"/home/emil/f", &st); err != nil || st.Uid != 0 {
		t.Errorf("a file in it is of %d now, %v", st.Uid, err)
	}
}

// Another program that holds the lock is waited for, but not for ever.
func TestSetUpUserWaitsForTheLock(t *testing.T) {
	root := accountRoot(t)
	f, err := os.Create(root + "/etc/.pwd.lock")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// An open file description's lock: another process's would look the same.
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := SetUpUser(ctx, root, UserSpec{Name: "emil", UID: 1000}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while it is held: %v", err)
	}
	f.Close()
	if _, err := SetUpUser(t.Context(), root, UserSpec{Name: "emil", UID: 1000}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}
