package metrics

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"
	"golang.org/x/sys/unix"
)

// What one who may scrape can cost the service.
const (
	maxConnections = 16
	maxScrapes     = 2
	maxHeaderBytes = 8 << 10
	requestTime    = 5 * time.Second
	answerTime     = 30 * time.Second
)

// Listen makes the socket, in place of one that a service before has left.
// Whoever may open it may read the metrics: this process's user, and with a
// group that group.
func Listen(path string, group int) (*net.UnixListener, error) {
	if fi, err := os.Lstat(path); err == nil {
		if fi.Mode()&fs.ModeSocket == 0 {
			return nil, fmt.Errorf("metrics: %s is there and is no socket", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("metrics: %w", err)
		}
	}
	// The socket gets its mode before it has a name, so that it never has
	// another one.
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); cerr != nil {
			return cerr
		}
		return err
	}}
	l, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	if group >= 0 {
		// In a user namespace of its own a service can give nothing away; what
		// it makes has its group already.
		if group != os.Getegid() {
			err = os.Lchown(path, -1, group)
		}
		if err == nil {
			err = os.Chmod(path, 0o660)
		}
		if err != nil {
			l.Close()
			return nil, fmt.Errorf("metrics: give the socket to its group: %w (the service's user has to be in it)", err)
		}
	}
	return l.(*net.UnixListener), nil
}

// Serve answers scrapes until ctx ends, and closes the listener.
func (m *Metrics) Serve(ctx context.Context, l net.Listener, log *slog.Logger) {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: maxScrapes, Timeout: answerTime - time.Second, ErrorHandling: promhttp.ContinueOnError,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}))
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: requestTime, ReadTimeout: requestTime, WriteTimeout: answerTime,
		IdleTimeout: answerTime, MaxHeaderBytes: maxHeaderBytes,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		server.Close()
	})
	err := server.Serve(netutil.LimitListener(l, maxConnections))
	if stop() {
		log.Error("metrics are not served any more", "err", err)
		l.Close()
		return
	}
	<-done
	if !errors.Is(err, http.ErrServerClosed) {
		log.Warn("end of the metrics", "err", err)
	}
}
