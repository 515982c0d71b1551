package host

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"
)

const (
	// userDatabase has a socket for each service that knows accounts besides
	// those of the file (systemd, "JSON User/Group Record Lookup API via
	// Varlink").
	userDatabase = "/run/systemd/userdb"
	// multiplexer asks all others, which is done here.
	multiplexer = "io.systemd.Multiplexer"
	// nameServiceSwitch asks the sources of nsswitch.conf, and tells one that
	// is out of reach from one that knows of no such account.
	nameServiceSwitch = "io.systemd.NameServiceSwitch"

	noRecordFound = "io.systemd.UserDatabase.NoRecordFound"
	userDBTimeout = 10 * time.Second
	maxUserRecord = 1 << 20
)

// askUserDatabase asks the services with sockets in a directory for an account.
// asked are those that have answered; an error means that one has not.
func askUserDatabase(ctx context.Context, dir string, uid uint32) (found bool, asked []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, userDBTimeout)
	defer cancel()
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return false, nil, nil
	}
	if err != nil {
		return false, nil, err
	}
	for _, e := range entries {
		if e.Name() == multiplexer || e.Type()&os.ModeSocket == 0 {
			continue
		}
		found, err := askUserService(ctx, filepath.Join(dir, e.Name()), uid)
		if err != nil {
			return false, nil, fmt.Errorf("ask %s: %w", e.Name(), err)
		}
		if found {
			return true, nil, nil
		}
		asked = append(asked, e.Name())
	}
	return false, asked, nil
}

// askUserService is one call of varlink: JSON that ends with a NUL, each way.
func askUserService(ctx context.Context, path string, uid uint32) (found bool, err error) {
	c, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return false, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	request, err := json.Marshal(map[string]any{
		"method":     "io.systemd.UserDatabase.GetUserRecord",
		"parameters": map[string]any{"uid": uid, "service": filepath.Base(path)},
	})
	if err != nil {
		return false, err
	}
	if _, err := c.Write(append(request, 0)); err != nil {
		return false, err
	}
	text, err := bufio.NewReader(io.LimitReader(c, maxUserRecord)).ReadBytes(0)
	if err != nil {
		return false, fmt.Errorf("no answer: %w", err)
	}
	var answer struct {
		Error      string                     `json:"error"`
		Parameters map[string]json.RawMessage `json:"parameters"`
	}
	if err := json.Unmarshal(text[:len(text)-1], &answer); err != nil {
		return false, err
	}
	switch {
	case answer.Error == noRecordFound:
		return false, nil
	case answer.Error != "":
		return false, fmt.Errorf("%.200q", answer.Error)
	case answer.Parameters["record"] == nil:
		return false, fmt.Errorf("an answer without a record")
	}
	return true, nil
}
