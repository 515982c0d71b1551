package vmc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/auberge-vm/auberge/client/bus"
	ct "github.com/auberge-vm/auberge/protos/ciceronepb"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

func (a *app) sshConfigCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "ssh-config VM CONTAINER",
		Short: "Print what ssh needs in its configuration for a container",
		Long: "Print a Host block for ssh's configuration, by which ssh, scp, rsync and what builds on them get\n" +
			"into a running container as its user. Nothing listens for that in the container: for each\n" +
			"connection vsh starts an sshd on its own standard input and output (sshd -i). The key that opens\n" +
			"and the one that answers, which is checked, are those that the container got at its start; they\n" +
			"are written to a directory of yours, ~/.local/share/auberge/ssh, which the block refers to.",
		Example: `  vmc ssh-config termina penguin >>~/.ssh/config
  ssh penguin.termina uname -a`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completeContainer(),
		RunE: a.withSession(func(ctx context.Context, s *session, args []string) error {
			return a.sshConfig(ctx, s, args[0], args[1])
		}),
	}
}

func (a *app) sshConfig(ctx context.Context, s *session, vm, container string) error {
	var keys pb.ContainerSshKeysResponse
	err := s.call(ctx, "GetContainerSshKeys", &pb.ContainerSshKeysRequest{VmName: vm, ContainerName: container, CryptohomeId: a.owner}, &keys)
	if err != nil {
		return err
	}
	if keys.ContainerPublicKey == "" || keys.HostPrivateKey == "" {
		return withCode(ExitNotFound, fmt.Errorf("there are no keys for %s in %s: it gets them when it first starts (vmc container %s %s)", container, vm, vm, container))
	}
	var who ct.GetLxdContainerUsernameResponse
	err = s.with(cicerone()).call(ctx, "GetLxdContainerUsername", &ct.GetLxdContainerUsernameRequest{VmName: vm, ContainerName: container, OwnerId: a.owner}, &who)
	if err != nil {
		return err
	}
	if who.Username == "" {
		return failed("look up the user of "+container, reason(cmp.Or(who.FailureReason, ended(who.Status, "").Error())))
	}
	b := &sshBlock{host: sshWord(container) + "." + sshWord(vm), user: who.Username}
	if err := b.writeKeys(&keys, a.ownerWord(), vm, container); err != nil {
		return withCode(ExitFailed, fmt.Errorf("keep the keys: %w", err))
	}
	b.proxy = a.proxyCommand(vm, container)
	if a.json {
		return a.printValue(map[string]any{"host": b.host, "user": b.user, "identity_file": b.identity, "known_hosts": b.known, "proxy_command": b.proxy})
	}
	_, err = fmt.Fprint(a.out, b)
	return err
}

// An sshBlock is a Host block of ssh's configuration.
type sshBlock struct{ host, user, identity, known, proxy string }

func (b *sshBlock) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "Host %s\n", b.host)
	for _, line := range [][2]string{
		{"HostName", b.host}, {"HostKeyAlias", b.host}, {"User", b.user},
		{"IdentityFile", sshQuote(b.identity)}, {"IdentitiesOnly", "yes"},
		{"UserKnownHostsFile", sshQuote(b.known)}, {"GlobalKnownHostsFile", "none"},
		{"StrictHostKeyChecking", "yes"}, {"UpdateHostKeys", "no"}, {"CheckHostIP", "no"},
		{"ProxyCommand", strings.ReplaceAll(b.proxy, "%", "%%")},
	} {
		fmt.Fprintf(&s, "    %s %s\n", line[0], line[1])
	}
	return s.String()
}

// writeKeys keeps the keys where the caller alone can read them.
func (b *sshBlock) writeKeys(keys *pb.ContainerSshKeysResponse, owner, vm, container string) error {
	data := os.Getenv("XDG_DATA_HOME")
	if !filepath.IsAbs(data) {
		home, err := os.UserHomeDir()
		if err != nil {
			return err
		}
		data = filepath.Join(home, ".local", "share")
	}
	dir := filepath.Join(data, "auberge", "ssh", url.PathEscape(owner)+"-"+url.PathEscape(vm)+"-"+url.PathEscape(container))
	if strings.ContainsAny(dir, "\"\n") {
		return fmt.Errorf("ssh takes no path with a quote: %q (see XDG_DATA_HOME)", dir)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	// ssh refuses a directory or a key that others can use.
	if err := os.Chmod(dir, 0o700); err != nil {
		return err
	}
	fields := strings.Fields(keys.ContainerPublicKey)
	if len(fields) < 2 {
		return errors.New("the container's public key is none")
	}
	b.identity, b.known = filepath.Join(dir, "identity"), filepath.Join(dir, "known_hosts")
	if err := writePrivate(b.identity, strings.TrimRight(keys.HostPrivateKey, "\n")+"\n"); err != nil {
		return err
	}
	return writePrivate(b.known, b.host+" "+fields[0]+" "+fields[1]+"\n")
}

// writePrivate replaces a file in one step, which another ssh may be reading.
func writePrivate(path, text string) error {
	part, err := os.CreateTemp(filepath.Dir(path), ".part-*")
	if err != nil {
		return err
	}
	defer os.Remove(part.Name())
	_, err = part.WriteString(text)
	if err = errors.Join(err, part.Close()); err != nil {
		return err
	}
	return os.Rename(part.Name(), path)
}

// proxyCommand is the shell command that carries ssh's connection: the sshd
// that it starts needs root's rights in the container, which its user has.
func (a *app) proxyCommand(vm, container string) string {
	words := []string{besides("vsh"), "--no-tty"}
	if a.bus != bus.System {
		words = append(words, "--bus", a.bus)
	}
	if a.owner != "" {
		words = append(words, "--owner-id", a.owner)
	}
	words = append(words, "--vm-name", vm, "--target-container", container, "--", "sudo", "-n", "/usr/sbin/sshd", "-i")
	for i, w := range words {
		words[i] = shellQuote(w)
	}
	return strings.Join(words, " ")
}

// besides is the path of another program of ours, which lies beside this one.
func besides(name string) string {
	self, err := os.Executable()
	if err != nil {
		return name
	}
	path := filepath.Join(filepath.Dir(self), name)
	if _, err := os.Stat(path); err != nil {
		return name
	}
	return path
}

// sshWord is a name as a part of a host's name, without what ssh takes for a
// pattern. ssh compares such names in small letters.
func sshWord(name string) string {
	return strings.ToLower(strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.' {
			return c
		}
		return '-'
	}, name))
}

// sshQuote writes a path for ssh's configuration, in which % begins a token.
func sshQuote(path string) string {
	path = strings.ReplaceAll(path, "%", "%%")
	if strings.ContainsAny(path, " \t#'") {
		return `"` + path + `"`
	}
	return path
}

// shellQuote writes a word for a POSIX shell.
func shellQuote(w string) string {
	plain := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-_./:=,@+", c)
	}
	if w != "" && strings.IndexFunc(w, func(c rune) bool { return !plain(c) }) < 0 {
		return w
	}
	return "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
}
