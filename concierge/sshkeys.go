package concierge

import (
	"context"
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

// Each owner has one key to log in with, for ever, and each container one by
// which it is known, for as long as its VM has its disk. Only private keys are
// stored; the public ones are part of them.

const (
	defaultContainer = "penguin"
	keySuffix        = ".key"
	// maxKey bounds a stored key in bytes; ours have some four hundred.
	maxKey = 8 << 10
)

// containerOf is the container that a request is about.
func containerOf(name string) (string, error) {
	if name == "" {
		return defaultContainer, nil
	}
	if err := policy.CheckContainerName(name); err != nil {
		return "", fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return name, nil
}

func (s *Service) keysDir() string { return filepath.Join(s.cfg.StateDir, "sshkeys") }

// ownerKeyPath has a dot in the file's name and so is no VM's directory.
func (s *Service) ownerKeyPath(o policy.Owner) string {
	return filepath.Join(s.keysDir(), ownerDir(o.UID, o.Label), "host"+keySuffix)
}

func (s *Service) vmKeysDir(o policy.Owner, vm string) string {
	return filepath.Join(s.keysDir(), ownerDir(o.UID, o.Label), fileName(vm))
}

// A sshKey is one pair in the formats of ssh-keygen(1).
type sshKey struct {
	private string // several lines
	public  string // one line, with its end
}

// GetContainerSshKeys returns what a container is reached by over ssh. Keys
// that there are none of yet are empty.
func (s *Service) GetContainerSshKeys(_ context.Context, sub policy.Subject, req *pb.ContainerSshKeysRequest) (*pb.ContainerSshKeysResponse, error) {
	if err := policy.CheckName(req.VmName); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	container, err := containerOf(req.ContainerName)
	if err != nil {
		return nil, err
	}
	owner, err := readKey(s.ownerKeyPath(sub.Owner))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the owner's ssh key: %w", err)
	}
	own, err := readKey(filepath.Join(s.vmKeysDir(sub.Owner, req.VmName), container+keySuffix))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the ssh key of container %q: %w", container, err)
	}
	return &pb.ContainerSshKeysResponse{
		ContainerPublicKey: own.public, ContainerPrivateKey: own.private,
		HostPublicKey: owner.public, HostPrivateKey: owner.private,
		Hostname: container + "." + req.VmName + ".linux.test",
	}, nil
}

// GetContainerKeys returns the keys that a container of a VM needs: the public
// one of its owner, and its own private one. Those that are missing are made.
func (s *Service) GetContainerKeys(ctx context.Context, cid uint32, container string) (authorized, host string, err error) {
	v, _, err := s.byCID(cid)
	if err != nil {
		return "", "", err
	}
	if container, err = containerOf(container); err != nil {
		return "", "", err
	}
	owner, own, err := s.makeKeys(ctx, v, container)
	return owner.public, own.private, err
}

func (s *Service) makeKeys(ctx context.Context, v *vm, container string) (owner, own sshKey, err error) {
	fail := func(err error) (sshKey, sshKey, error) {
		return sshKey{}, sshKey{}, fmt.Errorf("ssh keys for container %q of VM %q: %w", container, v.key.name, err)
	}
	select {
	case s.keysTurn <- struct{}{}:
		defer func() { <-s.keysTurn }()
	case <-ctx.Done():
		return fail(context.Cause(ctx))
	}
	if owner, err = keyAt(s.ownerKeyPath(v.owner), fmt.Sprintf("auberge-%d", v.key.uid)); err != nil {
		return fail(err)
	}
	dir := s.vmKeysDir(v.owner, v.key.name)
	if err := roomForKey(dir, container); err != nil {
		return fail(err)
	}
	if own, err = keyAt(filepath.Join(dir, container+keySuffix), container); err != nil {
		return fail(err)
	}
	return owner, own, nil
}

// maxKeys is how many containers of a VM, present and past, have keys. Whoever
// starts a container names it, and has its key made, before there is one.
const maxKeys = 256

// roomForKey refuses to make one more key than a VM may have.
func roomForKey(dir, container string) error {
	list, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case len(list) < maxKeys:
		return nil
	}
	if _, err := os.Lstat(filepath.Join(dir, container+keySuffix)); err == nil {
		return nil // it has one
	}
	return fmt.Errorf("the VM has keys for %d containers already, the most that it may; they go with its disk", maxKeys)
}

// removeKeys takes away the keys of a VM's containers.
func (s *Service) removeKeys(ctx context.Context, o policy.Owner, vm string) error {
	select {
	case s.keysTurn <- struct{}{}:
		defer func() { <-s.keysTurn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := os.RemoveAll(s.vmKeysDir(o, vm)); err != nil {
		return fmt.Errorf("remove the ssh keys of the containers of VM %q: %w", vm, err)
	}
	return nil
}

// keyAt reads a key, or makes it.
func keyAt(path, comment string) (sshKey, error) {
	k, err := readKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return sshKey{}, err
	}
	block, err := ssh.MarshalPrivateKey(private, comment)
	if err != nil {
		return sshKey{}, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return sshKey{}, err
	}
	if err := renameio.WriteFile(path, pem.EncodeToMemory(block), 0o600, renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(0o600)); err != nil {
		return sshKey{}, err
	}
	return readKey(path)
}

// readKey reads a key that keyAt has made. What is damaged is not replaced: a
// container would not let its owner in any more, or be taken for another.
func readKey(path string) (sshKey, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return sshKey{}, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return sshKey{}, err
	}
	if !fi.Mode().IsRegular() {
		return sshKey{}, fmt.Errorf("%s is no regular file", path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKey))
	if err != nil {
		return sshKey{}, err
	}
	signer, err := ssh.ParsePrivateKey(text)
	if err != nil {
		return sshKey{}, fmt.Errorf("%s is damaged (%w); without it, new keys are made when the container is started again", path, err)
	}
	return sshKey{private: string(text), public: strings.TrimSuffix(string(ssh.MarshalAuthorizedKey(signer.PublicKey())), "\n")}, nil
}
