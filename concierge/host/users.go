package host

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

// nsswitch names the sources of accounts (nsswitch.conf(5)).
const nsswitch = "/etc/nsswitch.conf"

func (h Host) passwd() string {
	if h.Passwd != "" {
		return h.Passwd
	}
	return "/etc/passwd"
}

// UserGone says whether there is certainly no account with a number. The error
// says that nobody can tell: where accounts come from a directory over the
// network, one that does not answer looks like an account that is not there.
//
// No other program is run for it: the packaged service can run none.
func (h Host) UserGone(ctx context.Context, uid uint32) (bool, error) {
	gone, err := h.userGone(ctx, uid)
	if err != nil {
		return false, fmt.Errorf("look for the account of uid %d: %w", uid, err)
	}
	return gone, nil
}

func (h Host) userGone(ctx context.Context, uid uint32) (bool, error) {
	f, err := os.Open(h.passwd())
	if err != nil {
		return false, err
	}
	defer f.Close()
	found, err := inPasswd(f, uid)
	if err != nil {
		return false, fmt.Errorf("%s: %w", h.passwd(), err)
	}
	if found || h.Passwd != "" {
		return !found, nil
	}
	found, asked, err := askUserDatabase(ctx, userDatabase, uid)
	if err != nil || found {
		return false, err
	}
	text, err := readSome(nsswitch)
	if err != nil && !os.IsNotExist(err) {
		return false, err
	}
	if source := otherSource(string(text)); source != "" && !slices.Contains(asked, nameServiceSwitch) {
		return false, fmt.Errorf("it is not found, but %s names the source %q, which cannot be asked without systemd-userdbd", nsswitch, source)
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

// otherSource is the first source of accounts in an nsswitch.conf that is
// neither the file nor systemd, empty when there is none.
func otherSource(text string) string {
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		sources, ok := strings.CutPrefix(strings.TrimSpace(line), "passwd:")
		if !ok {
			continue
		}
		for _, s := range strings.Fields(sources) {
			if !strings.HasPrefix(s, "[") && !strings.HasSuffix(s, "]") && s != "files" && s != "systemd" {
				return s
			}
		}
	}
	return ""
}
