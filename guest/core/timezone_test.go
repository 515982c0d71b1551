package core

import (
	"errors"
	"os"
	"testing"

	"github.com/auberge-vm/auberge/guest/core/coretest"
	"golang.org/x/sys/unix"
)

// zoneRoot is a file tree with time zones in it.
func zoneRoot(t *testing.T) string {
	t.Helper()
	root := coretest.Dir(t)
	for _, d := range []string{"/etc", zoneDir + "/Europe", zoneDir + "/Etc"} {
		if err := os.MkdirAll(root+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	writeFile(t, root+zoneDir+"/Europe/Paris", "TZif2 of Paris")
	writeFile(t, root+zoneDir+"/Etc/UTC", "TZif2 of UTC")
	writeFile(t, root+zoneDir+"/tzdata", "# version 2026a")
	writeFile(t, root+"/etc/shadow", "TZif no, a secret")
	for link, target := range map[string]string{
		zoneDir + "/UTC":        "Etc/UTC",
		zoneDir + "/out":        "../../../etc/shadow",
		zoneDir + "/absolute":   "/etc/shadow",
		zoneDir + "/Europe/out": "../../../../etc/shadow",
	} {
		if err := os.Symlink(target, root+link); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(root+zoneDir+"/fifo", 0o644); err != nil {
		t.Fatal(err)
	}
	return root
}

func TestSetTimezone(t *testing.T) {
	if !coretest.Isolated(t, unix.CLONE_NEWNS) {
		return
	}
	root := zoneRoot(t)
	link := func(name string) {
		t.Helper()
		if err := SetTimezone(root, name, false); err != nil {
			t.Fatal(err)
		}
		if got, err := os.Readlink(root + localtime); err != nil || got != zoneDir+"/"+name {
			t.Errorf("/etc/localtime points to %q, %v", got, err)
		}
	}
	bind := func(name, content string) {
		t.Helper()
		if err := SetTimezone(root, name, true); err != nil {
			t.Fatal(err)
		}
		var zone, local unix.Stat_t
		if err := errors.Join(unix.Stat(root+zoneDir+"/"+name, &zone), unix.Lstat(root+localtime, &local)); err != nil {
			t.Fatal(err)
		}
		if zone.Ino != local.Ino || zone.Dev != local.Dev || fileText(t, root+localtime) != content {
			t.Errorf("/etc/localtime is not the file of %s", name)
		}
		mounts := 0
		all, err := Mounts()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range all {
			if m.Target == root+localtime {
				mounts++
			}
		}
		if mounts != 1 {
			t.Errorf("%d mounts at /etc/localtime", mounts)
		}
	}
	link("Europe/Paris")
	bind("Europe/Paris", "TZif2 of Paris")
	bind("Etc/UTC", "TZif2 of UTC")
	link("UTC")
	writeFile(t, root+"/etc/timezone", "Etc/UTC\n")
	link("Europe/Paris")
	if got := fileText(t, root+"/etc/timezone"); got != "Europe/Paris\n" {
		t.Errorf("/etc/timezone holds %q", got)
	}
	// What is refused changes nothing.
	for name, want := range map[string]error{
		"":                     ErrZoneName,
		"/etc/shadow":          ErrZoneName,
		"../../../etc/shadow":  ErrZoneName,
		"Europe/../UTC":        ErrZoneName,
		"Europe/":              ErrZoneName,
		"Europe//Paris":        ErrZoneName,
		"Europe/Paris\n":       ErrZoneName,
		"Europe/Paris\x00":     ErrZoneName,
		"./UTC":                ErrZoneName,
		"Europe":               ErrNoZone,
		"Europe/Atlantis":      ErrNoZone,
		"Europe/Paris/Bastion": ErrNoZone,
		"tzdata":               ErrNoZone,
		"out":                  ErrNoZone,
		"absolute":             ErrNoZone,
		"Europe/out":           ErrNoZone,
		"fifo":                 ErrNoZone,
	} {
		for _, bind := range []bool{false, true} {
			if err := SetTimezone(root, name, bind); !errors.Is(err, want) {
				t.Errorf("%q: %v, want %v", name, err, want)
			}
		}
	}
	if got, _ := os.Readlink(root + localtime); got != zoneDir+"/Europe/Paris" {
		t.Errorf("/etc/localtime points to %q", got)
	}
	if err := os.RemoveAll(root + zoneDir); err != nil {
		t.Fatal(err)
	}
	if err := SetTimezone(root, "UTC", false); !errors.Is(err, ErrNoZone) {
		t.Errorf("without any zones: %v", err)
	}
}
