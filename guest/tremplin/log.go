package tremplin

import (
	"log/slog"
	"log/syslog"
	"os"
)

// NewLogger logs to the VM's syslog, from where the host has it, or to the
// standard error where there is none.
func NewLogger() *slog.Logger {
	w, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_INFO, "tremplin")
	if err != nil {
		return slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		// syslog has its own.
		if len(groups) == 0 && a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}
