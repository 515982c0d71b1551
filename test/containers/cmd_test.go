package containers

import (
	"bytes"
	"context"
	"os/exec"
	"syscall"
)

// A cmd ends with its context.
type cmd struct {
	*exec.Cmd
	ctx context.Context
}

// CombinedOutput is exec.Cmd's; of a command that has to be ended for its
// context the error is that context's.
func (c *cmd) CombinedOutput() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Start(); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(c.ctx, func() { c.Process.Signal(syscall.SIGKILL) })
	err := c.Wait()
	if !stop() {
		err = c.ctx.Err()
	}
	return out.Bytes(), err
}
