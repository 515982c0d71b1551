package testbed

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
)

// A notifySocket hears a daemon's sd_notify messages.
type notifySocket struct {
	conn *net.UnixConn
	path string
}

func listenNotify(dir string) (*notifySocket, error) {
	d, err := os.MkdirTemp(dir, "notify")
	if err != nil {
		return nil, err
	}
	n := &notifySocket{path: filepath.Join(d, "s")}
	if n.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: n.path, Net: "unixgram"}); err != nil {
		return nil, err
	}
	for path, mode := range map[string]os.FileMode{d: 0o755, n.path: 0o777} {
		if err := os.Chmod(path, mode); err != nil {
			n.close()
			return nil, err
		}
	}
	return n, nil
}

// wait returns when the daemon is ready.
func (n *notifySocket) wait() error {
	buf := make([]byte, 4096)
	for {
		k, err := n.conn.Read(buf)
		if err != nil {
			return fmt.Errorf("wait for the daemon: %w", err)
		}
		for l := range strings.Lines(string(buf[:k])) {
			if strings.TrimSpace(l) == "READY=1" {
				return nil
			}
		}
	}
}

func (n *notifySocket) close() {
	n.conn.Close()
	os.RemoveAll(filepath.Dir(n.path))
}
