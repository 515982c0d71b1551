package vmc

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

func (f *fake) GetContainerSshKeys(_ context.Context, _ policy.Subject, req *pb.ContainerSshKeysRequest) (*pb.ContainerSshKeysResponse, error) {
	if req.ContainerName != "penguin" {
		return &pb.ContainerSshKeysResponse{}, nil
	}
	return &pb.ContainerSshKeysResponse{HostPrivateKey: "secret\n", ContainerPublicKey: "ssh-ed25519 AAAA comment of\n"}, nil
}

// The keys are kept where the caller alone reads them, and the block is one
// that ssh and a shell read as it is meant.
func TestSSHConfig(t *testing.T) {
	_, bus := openHouse(t)
	data := filepath.Join(t.TempDir(), "a 100% dir")
	t.Setenv("XDG_DATA_HOME", data)
	out, errs, code := vmc(t, "", "ssh-config", "My VM", "penguin", "--bus", bus.Address, "--owner", "work")
	if code != 0 {
		t.Fatalf("%d, %s", code, errs)
	}
	dir := filepath.Join(data, "auberge", "ssh", "work-My%20VM-penguin")
	for file, want := range map[string]string{"identity": "secret\n", "known_hosts": "penguin.my-vm ssh-ed25519 AAAA\n"} {
		path := filepath.Join(dir, file)
		b, err := os.ReadFile(path)
		if err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", file, b, err)
		}
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", file, fi, err)
		}
	}
	if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", fi, err)
	}
	for _, want := range []string{
		"Host penguin.my-vm\n", "\n    User alice\n", "\n    StrictHostKeyChecking yes\n",
		"\n    IdentityFile \"" + strings.ReplaceAll(dir, "%", "%%") + "/identity\"\n",
		` --owner-id work --vm-name 'My VM' --target-container penguin -- sudo -n /usr/sbin/sshd -i` + "\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if got := shellQuote("it's"); got != `'it'\''s'` {
		t.Errorf("quoted: %s", got)
	}
	if _, errs, code := vmc(t, "", "ssh-config", "vm", "new", "--bus", bus.Address); code != 3 || !strings.Contains(errs, "vmc container vm new") {
		t.Errorf("without keys: %d, %s", code, errs)
	}
}
