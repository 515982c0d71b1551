package hostcalls

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	// TokenPath is where the VM puts the container's token.
	TokenPath = "/dev/.container_token"
	// tokenSize is the most that is read of it.
	tokenSize = 36
	// The token may come after the container has started.
	tokenPause    = 100 * time.Millisecond
	tokenPatience = time.Minute
)

var errNoToken = errors.New("the file is empty")

// WaitToken reads the container's token, and waits a minute for it to come.
func WaitToken(ctx context.Context, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, tokenPatience)
	defer cancel()
	tick := time.NewTicker(tokenPause)
	defer tick.Stop()
	for {
		token, err := ReadToken(path)
		if err == nil {
			return token, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return "", fmt.Errorf("no token for this container, by which its host would know it: %w; "+
				"only containers that the host's VM service started have one", err)
		}
	}
}

// ReadToken reads the container's token as it is now.
func ReadToken(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, tokenSize))
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(text))
	switch {
	case token == "":
		return "", fmt.Errorf("read %s: %w", path, errNoToken)
	case !utf8.ValidString(token):
		return "", fmt.Errorf("read %s: it holds no token but binary data", path)
	}
	return token, nil
}
