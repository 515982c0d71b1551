package incus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// pollPause is the time between two looks at an operation that is followed.
const pollPause = 500 * time.Millisecond

// States of an operation, as numbers of the API.
const (
	statusSuccess   = 200
	statusFailure   = 400
	statusCancelled = 401
)

// An Operation is work that the server does in the background.
type Operation struct {
	ID        string         `json:"id"`
	Code      int            `json:"status_code"`
	Err       string         `json:"err"`
	MayCancel bool           `json:"may_cancel"`
	Metadata  map[string]any `json:"metadata"`
}

// Progress returns the operation's own words on how far it is.
func (o Operation) Progress() string {
	for key, v := range o.Metadata {
		if text, ok := v.(string); ok && strings.HasSuffix(key, "_progress") {
			return text
		}
	}
	return ""
}

func (o Operation) ended() bool { return o.Code >= statusSuccess }

func (o Operation) failure() error {
	switch o.Code {
	case statusSuccess:
		return nil
	case statusCancelled:
		return errors.New("Incus cancelled the operation")
	}
	return &Error{Code: o.Code, Text: o.Err}
}

// beginWait bounds the beginning of an operation.
const beginWait = time.Minute

// begin sends a request that begins an operation. When the context ends it
// still waits for the answer: an operation whose name nobody knows could not
// be cancelled.
func (c *Client) begin(ctx context.Context, method, path string, body any) (Operation, error) {
	if ctx.Err() != nil {
		return Operation{}, context.Cause(ctx)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), beginWait)
	defer cancel()
	a, err := c.call(ctx, method, path, body, nil)
	if err != nil {
		return Operation{}, err
	}
	return operation(a, method+" "+path)
}

func operation(a answer, asked string) (Operation, error) {
	var op Operation
	if a.Type != "async" {
		return op, fmt.Errorf("Incus answered %s with %q instead of an operation", asked, a.Type)
	}
	if err := json.Unmarshal(a.Metadata, &op); err != nil {
		return op, fmt.Errorf("Incus' answer to %s is not understood: %w", asked, err)
	}
	return op, nil
}

// do sends a request that begins an operation, and waits for the end.
func (c *Client) do(ctx context.Context, method, path string, body any) (Operation, error) {
	op, err := c.begin(ctx, method, path, body)
	if err != nil {
		return op, err
	}
	return c.Wait(ctx, op)
}

// Wait returns when an operation has ended. When the context ends before, the
// operation is cancelled, if it can be.
func (c *Client) Wait(ctx context.Context, op Operation) (Operation, error) {
	for !op.ended() {
		// With a timeout, Incus answers that with an error like any other.
		err := c.await(ctx, "/1.0/operations/"+escape(op.ID)+"/wait", &op)
		if err != nil {
			return op, c.lost(ctx, op, err)
		}
	}
	return op, op.failure()
}

// Follow is Wait, and tells of the operation's state again and again. An error
// of tell cancels the operation.
func (c *Client) Follow(ctx context.Context, op Operation, tell func(Operation) error) (Operation, error) {
	tick := time.NewTicker(pollPause)
	defer tick.Stop()
	for !op.ended() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return op, c.lost(ctx, op, ctx.Err())
		}
		if _, err := c.call(ctx, http.MethodGet, "/1.0/operations/"+escape(op.ID), nil, &op); err != nil {
			return op, c.lost(ctx, op, err)
		}
		if err := tell(op); err != nil && !op.ended() {
			c.cancel(op)
			return op, err
		}
	}
	return op, op.failure()
}

// lost makes an error of an operation whose end we shall not see.
func (c *Client) lost(ctx context.Context, op Operation, err error) error {
	if ctx.Err() != nil {
		c.cancel(op)
		return context.Cause(ctx)
	}
	if IsNotFound(err) {
		return errors.New("Incus was restarted in the middle of the operation")
	}
	if IsGone(err) {
		return fmt.Errorf("Incus ended in the middle of the operation: %w", err)
	}
	return err
}

// cancel asks for an operation's end, and gives it some seconds, for its
// leftovers are removed next.
func (c *Client) cancel(op Operation) {
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	c.call(ctx, http.MethodDelete, "/1.0/operations/"+escape(op.ID), nil, nil)
	// What cannot be cancelled may as well end by itself.
	c.await(ctx, "/1.0/operations/"+escape(op.ID)+"/wait?timeout=8", nil)
}
