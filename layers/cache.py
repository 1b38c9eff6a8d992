"""Keys and values of a decode state: static buffers, written at a position, never grown."""
import torch

from layers.attention import TokenLayout


class LayerCache:
    """Keys and values of one layer for up to `room` patches: two buffers [B, room + 1, C, heads, E].

    Rollback needs no work here: entries at or after a row's length are overwritten before they become visible.
    The last place takes writes at negative times and is never read.
    """

    def __init__(self, rows: int, room: int, variables: int):
        self.rows, self.room, self.variables = rows, room, variables
        # allocated at the first write, when dtype and heads are known
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None

    def store(self, k: torch.Tensor, v: torch.Tensor, layout: TokenLayout):
        """Writes k, v [B, heads, m*C, E] at layout.times; returns keys and values of all patches in the layout."""
        if self.keys is None or self.values is None:
            shape = (self.rows, self.room + 1, self.variables, k.shape[1], k.shape[3])
            self.keys, self.values = k.new_zeros(shape), v.new_zeros(shape)
        return self._write(self.keys, k, layout), self._write(self.values, v, layout)

    def _write(self, buffer: torch.Tensor, new: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
        new = new.transpose(1, 2).unflatten(1, (-1, self.variables))  # [B, m, C, heads, E]
        if layout.first is not None and layout.first_key is not None:
            last = layout.first + new.shape[1]
            buffer[:, layout.first:last] = new
            return buffer[:, layout.first_key:last].flatten(1, 2).transpose(1, 2)
        times = layout.times
        places = torch.where(times < 0, self.room, times)
        if times.shape[0] == 1:
            buffer.index_copy_(1, places[0], new)
        else:
            buffer[torch.arange(self.rows, device=times.device)[:, None], places] = new
        if layout.first_key is None:
            rows = torch.arange(self.rows, device=times.device)[:, None]
            looked_at = buffer[rows, layout.keys.clamp(max=self.room - 1)]
        else:
            looked_at = buffer[:, layout.first_key:layout.first_key + layout.keys.shape[1]]
        return looked_at.flatten(1, 2).transpose(1, 2)

    def select(self, rows: torch.Tensor) -> None:
        self.rows = len(rows)
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[rows], self.values[rows]
