package concierge

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

func keysOf(t *testing.T, s *Service, sub policy.Subject, vm, container string) *pb.ContainerSshKeysResponse {
	t.Helper()
	k, err := s.GetContainerSshKeys(t.Context(), sub, &pb.ContainerSshKeysRequest{VmName: vm, ContainerName: container})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// checkPair asks ssh-keygen(1) whether the keys are a pair.
func checkPair(t *testing.T, private, public string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte(private), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("ssh-keygen", "-y", "-P", "", "-f", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	got, _, _, _, err := ssh.ParseAuthorizedKey(out)
	if err != nil {
		t.Fatal(err)
	}
	want, _, _, rest, err := ssh.ParseAuthorizedKey([]byte(public))
	if err != nil || len(rest) > 0 || strings.ContainsAny(public, "\n") || want.Type() != ssh.KeyAlgoED25519 || string(got.Marshal()) != string(want.Marshal()) {
		t.Errorf("%q is not the public key of %q: %v", public, out, err)
	}
}

// Keys are made for a container that is started, kept over restarts, and go
// with the disk of its VM; its owner's stays.
func TestContainerSSHKeys(t *testing.T) {
	b, f := withContainers(t)
	f.ensure = func(context.Context, string, string) error { return nil }
	s := b.serve()
	empty := keysOf(t, s, alice, "x", "")
	if empty.HostPrivateKey+empty.HostPublicKey+empty.ContainerPrivateKey+empty.ContainerPublicKey != "" || empty.Hostname != "penguin.x.linux.test" {
		t.Errorf("before: %v", empty)
	}
	resp, err := b.startTermina(s, "x")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.TremplinReady(t.Context(), uint32(resp.VmInfo.Cid)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []string{"", "other"} {
		if _, err := s.StartContainer(t.Context(), alice, &pb.StartContainerRequest{VmName: "x", ContainerName: c}); err != nil {
			t.Fatal(err)
		}
	}
	penguin, other := keysOf(t, s, alice, "x", ""), keysOf(t, s, alice, "x", "other")
	checkPair(t, penguin.HostPrivateKey, penguin.HostPublicKey)
	checkPair(t, penguin.ContainerPrivateKey, penguin.ContainerPublicKey)
	checkPair(t, other.ContainerPrivateKey, other.ContainerPublicKey)
	if penguin.HostPrivateKey != other.HostPrivateKey || penguin.ContainerPrivateKey == other.ContainerPrivateKey ||
		penguin.ContainerPrivateKey == penguin.HostPrivateKey || other.Hostname != "other.x.linux.test" {
		t.Errorf("keys of two containers: %v, %v", penguin, other)
	}
	// The other daemon gets what belongs into the container.
	authorized, host, err := s.GetContainerKeys(t.Context(), uint32(resp.VmInfo.Cid), "")
	if err != nil || authorized != penguin.HostPublicKey || host != penguin.ContainerPrivateKey {
		t.Errorf("the container gets %q, %q, %v", authorized, host, err)
	}
	if _, _, err := s.GetContainerKeys(t.Context(), 2, ""); !errors.Is(err, ErrNotFound) {
		t.Errorf("for no VM: %v", err)
	}
	// Nobody else's are the same, not those of another label either.
	label := alice
	label.Owner.Label, label.Owner.Word = "l", "l"
	for _, sub := range []policy.Subject{label, subject(5)} {
		if k := keysOf(t, s, sub, "x", ""); k.HostPrivateKey != "" || k.ContainerPublicKey != "" {
			t.Errorf("%+v has %v", sub.Owner, k)
		}
	}
	err = filepath.WalkDir(filepath.Join(b.cfg.StateDir, "sshkeys"), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err == nil && fi.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has the mode %v", path, fi.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	s.Close()
	s = b.serve()
	if again := keysOf(t, s, alice, "x", ""); again.ContainerPrivateKey != penguin.ContainerPrivateKey || again.HostPrivateKey != penguin.HostPrivateKey {
		t.Error("a restart changes keys")
	}
	destroyed, err := s.DestroyDiskImage(t.Context(), alice, &pb.DestroyDiskImageRequest{VmName: "x", CryptohomeId: alice.Owner.Word})
	if err != nil || destroyed.Status != pb.DiskImageStatus_DISK_STATUS_DESTROYED {
		t.Fatal(destroyed, err)
	}
	for _, c := range []string{"", "other"} {
		if k := keysOf(t, s, alice, "x", c); k.ContainerPrivateKey != "" || k.ContainerPublicKey != "" || k.HostPrivateKey != penguin.HostPrivateKey {
			t.Errorf("after the disk: %v", k)
		}
	}
}

// A name cannot lead out of the store, and what is no key is neither followed
// nor replaced.
func TestSSHKeysOfStrangeNames(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	for _, req := range []*pb.ContainerSshKeysRequest{
		{VmName: "x", ContainerName: "../host"}, {VmName: "x", ContainerName: "A"}, {VmName: "", ContainerName: "a"}, {VmName: "x/y"},
	} {
		if k, err := s.GetContainerSshKeys(t.Context(), alice, req); !errors.Is(err, ErrInvalid) {
			t.Errorf("%v: %v, %v", req, k, err)
		}
	}
	v := &vm{key: key{uid: 64101, name: "x"}, owner: alice.Owner}
	if _, _, err := s.makeKeys(t.Context(), v, "penguin"); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(s.vmKeysDir(alice.Owner, "x"), "penguin.key")
	stray := filepath.Join(b.cfg.StateDir, "stray")
	if err := os.Rename(path, stray); err != nil {
		t.Fatal(err)
	}
	for what, make := range map[string]func() error{
		"a link":      func() error { return os.Symlink(stray, path) },
		"a damaged":   func() error { return os.WriteFile(path, []byte("-----BEGIN"), 0o600) },
		"an empty":    func() error { return os.WriteFile(path, nil, 0o600) },
		"a directory": func() error { return os.Mkdir(path, 0o700) },
	} {
		if err := make(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.GetContainerSshKeys(t.Context(), alice, &pb.ContainerSshKeysRequest{VmName: "x"}); err == nil || !strings.Contains(err.Error(), "penguin") {
			t.Errorf("%s is read: %v", what, err)
		}
		if _, _, err := s.makeKeys(t.Context(), v, "penguin"); err == nil {
			t.Errorf("%s is replaced", what)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// Names of containers that never are leave so many keys, and no more.
func TestContainerKeysAreBounded(t *testing.T) {
	b, _ := withContainers(t)
	s := b.serve()
	resp, err := b.startTermina(s, "x")
	if err != nil {
		t.Fatal(err)
	}
	cid := uint32(resp.VmInfo.Cid)
	n := 0
	for ; n < 300; n++ {
		if _, _, err = s.GetContainerKeys(t.Context(), cid, fmt.Sprint("c", n)); err != nil {
			break
		}
	}
	if n != 256 || !strings.Contains(fmt.Sprint(err), "256 containers") {
		t.Errorf("%d containers have keys, then: %v", n, err)
	}
	if _, _, err := s.GetContainerKeys(t.Context(), cid, "c7"); err != nil {
		t.Errorf("the keys that are there: %v", err)
	}
}
