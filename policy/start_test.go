package policy_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/policy"
)

// status is what a process started with StartAs finds in /proc/self/status.
func status(cred policy.Credential) (map[string][]string, error) {
	var out bytes.Buffer
	cmd := exec.Command("/bin/cat", "/proc/self/status")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := policy.StartAs(cmd, cred); err != nil {
		return nil, err
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, &out)
	}
	fields := map[string][]string{}
	for l := range strings.Lines(out.String()) {
		name, rest, _ := strings.Cut(l, ":")
		fields[name] = strings.Fields(rest)
	}
	return fields, nil
}

// checkStatus says what is wrong with a process that should have the
// credentials and no right beyond them.
func checkStatus(got map[string][]string, cred policy.Credential) error {
	var errs []error
	expect := func(name string, want ...any) {
		var words []string
		for _, w := range want {
			words = append(words, fmt.Sprint(w))
		}
		if !slices.Equal(got[name], words) {
			errs = append(errs, fmt.Errorf("%s is %v, want %v", name, got[name], words))
		}
	}
	const none = "0000000000000000"
	expect("Uid", cred.UID, cred.UID, cred.UID, cred.UID)
	expect("Gid", cred.GID, cred.GID, cred.GID, cred.GID)
	var groups []any
	for _, g := range cred.Groups {
		groups = append(groups, g)
	}
	expect("Groups", groups...)
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
		expect(set, none)
	}
	expect("NoNewPrivs", 1)
	return errors.Join(errs...)
}

func TestStartAs(t *testing.T) {
	needRoot(t)
	for name, cred := range map[string]policy.Credential{
		"without groups": {UID: stranger, GID: 64105},
		"with groups":    {UID: nobody, GID: nobody, Groups: []uint32{64105, 64106}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := status(cred)
			if err != nil {
				t.Fatal(err)
			}
			if err := checkStatus(got, cred); err != nil {
				t.Error(err)
			}
		})
	}
	// What it gives up for a child, this process keeps.
	if !policy.CanSwitch() {
		t.Error("root cannot switch users any more")
	}
}

// The service as it is packaged: a user of its own with ambient capabilities,
// none of which reach a child.
func TestStartAsWithAmbientCapabilities(t *testing.T) {
	needRoot(t)
	dir := publicDir(t)
	own := write(t, filepath.Join(dir, "own"), "own", 0o600, stranger, stranger)
	attr := credential(nobody, nobody)
	attr.AmbientCaps = []uintptr{unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_KILL}
	runHelper(t, attr, "ambient", own)
}

func ambient(args []string) error {
	if !policy.CanSwitch() {
		return errors.New("it thinks that it cannot switch users")
	}
	cred := policy.Credential{UID: stranger, GID: stranger, Groups: []uint32{64105}}
	got, err := status(cred)
	if err != nil {
		return err
	}
	if err := checkStatus(got, cred); err != nil {
		return err
	}
	// Its own user gets no capability either.
	own := policy.Credential{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
	if got, err = status(own); err != nil {
		return err
	}
	if err := checkStatus(got, own); err != nil {
		return err
	}
	f, err := (&policy.Opener{}).Open(context.Background(), policy.Caller{UID: stranger}, args[0], policy.ReadWrite)
	if err != nil {
		return err
	}
	f.Close()
	_, err = (&policy.Opener{}).Open(context.Background(), policy.Caller{UID: nobody}, args[0], policy.ReadOnly)
	if !errors.Is(err, syscall.EACCES) {
		return fmt.Errorf("somebody else's file: %v", err)
	}
	return nil
}

// Two of the three capabilities are not enough: what cannot be ended must not
// be started.
func TestCanSwitchNeedsAllCapabilities(t *testing.T) {
	needRoot(t)
	all := []uintptr{unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_KILL}
	for i := range all {
		attr := credential(nobody, nobody)
		attr.AmbientCaps = slices.Delete(slices.Clone(all), i, i+1)
		if got := runHelper(t, attr, "show"); got != "false" {
			t.Errorf("without capability %d it can switch: %s", all[i], got)
		}
	}
	attr := credential(nobody, nobody)
	attr.AmbientCaps = all
	if got := runHelper(t, attr, "show"); got != "true" {
		t.Errorf("with all of them: %s", got)
	}
}

func show([]string) error {
	fmt.Print(policy.CanSwitch())
	return nil
}
