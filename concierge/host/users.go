package host

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
)

// nsswitch names the sources of accounts (nsswitch.conf(5)).
const nsswitch = "/etc/nsswitch.conf"

// exitNotFound is how getent(1) ends when it has found nothing. It ends so as
// well when a source of accounts could not be asked.
const exitNotFound = 2

func (h Host) passwd() string {
	if h.Passwd != "" {
		return h.Passwd
	}
	return "/etc/passwd"
}

// UserGone says whether there is certainly no account with a number. The error
// says that nobody can tell: where accounts come from a directory over the
// network, one that does not answer looks like an account that is not there.
func (h Host) UserGone(ctx context.Context, uid uint32) (bool, error) {
	f, err := os.Open(h.passwd())
	if err != nil {
		return false, fmt.Errorf("look for the account of uid %d: %w", uid, err)
	}
	defer f.Close()
	found, err := inPasswd(f, uid)
	if err != nil {
		return false, fmt.Errorf("look for the account of uid %d: %s: %w", uid, h.passwd(), err)
	}
	if found || h.Passwd != "" {
		return !found, nil
	}
	out, err := exec.CommandContext(ctx, "getent", "passwd", strconv.FormatUint(uint64(uid), 10)).Output()
	var exit *exec.ExitError
	switch {
	case err == nil && len(bytes.TrimSpace(out)) > 0:
		return false, nil
	case err != nil && (!errors.As(err, &exit) || exit.ExitCode() != exitNotFound):
		return false, fmt.Errorf("look for the account of uid %d: getent: %w", uid, err)
	}
	text, err := readSome(nsswitch)
	if err != nil && !os.IsNotExist(err) {
		return false, fmt.Errorf("look for the account of uid %d: %w", uid, err)
	}
	if source := remoteSource(string(text)); source != "" {
		return false, fmt.Errorf("uid %d is not found, but %s names the source %q, which may only be out of reach", uid, nsswitch, source)
	}
	return true, nil
}

// inPasswd looks for a uid in a file like passwd(5). Lines that are none are
// no accounts.
func inPasswd(r io.Reader, uid uint32) (bool, error) {
	want := strconv.FormatUint(uint64(uid), 10)
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		if f := strings.SplitN(sc.Text(), ":", 4); len(f) == 4 && f[2] == want {
			return true, nil
		}
	}
	return false, sc.Err()
}

// remoteSource is the first source of accounts in an nsswitch.conf that is not
// on this machine, empty when there is none.
func remoteSource(text string) string {
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		sources, ok := strings.CutPrefix(strings.TrimSpace(line), "passwd:")
		if !ok {
			continue
		}
		for _, s := range strings.Fields(sources) {
			local := []string{"files", "systemd", "compat", "db", "mymachines", "altfiles", "nss_altfiles", "extrausers"}
			if !strings.HasPrefix(s, "[") && !strings.HasSuffix(s, "]") && !slices.Contains(local, s) {
				return s
			}
		}
	}
	return ""
}
