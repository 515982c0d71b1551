package vmlog

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"sync"
)

// A Store hands out logs. There is one Log of a path at a time, which its
// writers and readers share, also over the end of a VM and its next start.
type Store struct {
	mu   sync.Mutex
	logs map[string]*Log
}

// NewStore returns an empty store. It holds nothing that has to be closed.
func NewStore() *Store { return &Store{logs: map[string]*Log{}} }

// Open returns the log whose files are path, path.1 and so on; none need exist
// yet. The caller closes it.
func (s *Store) Open(path string, log *slog.Logger) *Log {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.logs[path]
	if l == nil {
		l = &Log{store: s, path: path, log: log, turn: make(chan struct{}, 1), changed: make(chan struct{})}
		s.logs[path] = l
	}
	l.refs++
	return l
}

// Close gives the log back. Its files stay.
func (l *Log) Close() {
	l.store.mu.Lock()
	defer l.store.mu.Unlock()
	if l.refs--; l.refs == 0 {
		delete(l.store.logs, l.path)
	}
}

// Remove removes a log's files, and ends those who follow it.
func (s *Store) Remove(ctx context.Context, path string, log *slog.Logger) error {
	l := s.Open(path, log)
	defer l.Close()
	if err := l.enter(ctx); err != nil {
		return err
	}
	defer l.leave()
	var failed error
	for i := range files {
		if err := os.Remove(l.file(i)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = errors.Join(failed, err)
		}
	}
	l.current, l.lost, l.cause = nil, 0, nil
	l.mu.Lock()
	l.missed, l.refused = 0, 0
	l.removals++
	l.publish(0)
	l.mu.Unlock()
	return failed
}
